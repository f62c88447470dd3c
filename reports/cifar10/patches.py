"""A model that robench did not train: random patches of the training images as filters, and a ridge classifier in closed form.

    python reports/cifar10/patches.py DATA_DIR       # fits it in a minute and writes patches.npz beside this file
    robench attack --model reports/cifar10/patches.py:make --dataset cifar10 --suite fgsm,pgd20,fast

The features are those of Coates, Ng & Lee 2011 (https://proceedings.mlr.press/v15/coates11a.html) with patches instead of k-means: whitened, both signs,
summed over quadrants.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WEIGHTS = Path(__file__).with_name("patches.npz")
N_FILTERS, SIZE, SEED = 256, 6, 0


class Patches(nn.Module):
    """[0, 1] images (N, 3, 32, 32) to logits (N, 10)."""

    def __init__(self, filters, offset, weight, bias):
        super().__init__()
        self.filters, self.offset = nn.Parameter(filters), nn.Parameter(offset)
        self.linear = nn.Linear(weight.shape[1], weight.shape[0])
        self.linear.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, images):
        return self.linear(features(images, self.filters, self.offset))


def features(images, filters, offset):
    """Responses to the filters and their opposites above a quarter, summed over quadrants: (N, 8 * n_filters)."""
    responses = F.conv2d(images, filters, offset)
    both = torch.cat([F.relu(responses - 0.25), F.relu(-responses - 0.25)], 1)
    return F.adaptive_avg_pool2d(both, 2).flatten(1)


def whitened_patches(images, generator):
    """Filters of unit length in the whitened space, and what they add for the mean: (n, 3, 6, 6), (n,)."""
    patches = F.unfold(images[:2000], SIZE, stride=5).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    whiten = vectors @ torch.diag((values + 0.01).rsqrt()) @ vectors.T
    chosen = (patches[torch.randperm(len(patches), generator=generator)[:N_FILTERS]] - mean) @ whiten
    filters = chosen / chosen.norm(dim=1, keepdim=True) @ whiten
    return filters.view(-1, 3, SIZE, SIZE), -(filters @ mean)


def fit(images, labels):
    """The model, by ridge regression on one-hot labels of plus and minus one."""
    filters, offset = whitened_patches(images, torch.Generator().manual_seed(SEED))
    inputs = torch.cat([features(part, filters, offset) for part in images.split(1000)]).double()
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-6
    inputs = (inputs - mean) / scale
    targets = 2.0 * F.one_hot(labels).double() - 1
    gram = inputs.T @ inputs + 300 * torch.eye(inputs.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(gram, inputs.T @ (targets - targets.mean(0)))
    weight = (solved / scale[:, None]).T
    return Patches(filters, offset, weight.float(), (targets.mean(0) - weight @ mean).float())


def make():
    """The fitted model."""
    with np.load(WEIGHTS, allow_pickle=False) as stored:
        parts = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files}
    return Patches(parts["filters"], parts["offset"], parts["linear.weight"], parts["linear.bias"])


if __name__ == "__main__":
    from robench.data import load_dataset

    train, test = (load_dataset("cifar10", split, Path(sys.argv[1])) for split in ("train", "test"))
    with torch.no_grad():
        model = fit(train.images.float() / 255, train.labels)
        np.savez_compressed(WEIGHTS, **{name: tensor.numpy().astype(np.float16) for name, tensor in model.state_dict().items()})
        right = torch.cat([make()(part.float() / 255).argmax(1) for part in test.images.split(1000)]) == test.labels
    print(f"{WEIGHTS}: {right.float().mean():.2%} of the test images")
