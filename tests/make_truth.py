"""Trains the network of truth.py, proves what it can about the first test digits, and writes truth.safetensors.

python tests/make_truth.py [N]
"""

import json
import sys
import time

import scipy
import torch
from safetensors.torch import save_file
from torch import nn
from truth import BROKEN, EPS, FILE, ROBUST, SLACK, UNKNOWN, WRONG, make_network, prove

from robench.data import load_dataset


def train_network(seed=0, epochs=60):
    """N-FGSM at the radius that is proven."""
    torch.manual_seed(seed)
    data = load_dataset("digits", "train")
    images, labels = data.images / 255, data.labels
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, weight_decay=1e-4)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            noisy = (images[batch] + torch.empty_like(images[batch]).uniform_(-EPS, EPS)).requires_grad_()
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(network(noisy), labels[batch]), noisy)
            adv_images = (noisy + EPS * gradient.sign()).detach().clamp(0, 1)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(adv_images), labels[batch]).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def main(n=200):
    torch.set_num_threads(1)
    network, data = train_network(), load_dataset("digits", "test")
    verdicts, bounds, started = [], [], time.perf_counter()
    for place in range(n):
        verdict, bound = prove(network, data.images[place : place + 1] / 255, int(data.labels[place]))
        verdicts.append(verdict)
        bounds.append(bound)
        print(place, verdict, f"{bound:.4f}", f"{time.perf_counter() - started:.0f} s", flush=True)
    counts = {
        name: verdicts.count(value)
        for name, value in (("robust", ROBUST), ("broken", BROKEN), ("unknown", UNKNOWN), ("wrong", WRONG))
    }
    about = {
        "n": n, "eps": EPS, "slack": SLACK, "counts": counts, "seconds": round(time.perf_counter() - started), "data": data.digest,
        "torch": torch.__version__, "scipy": scipy.__version__, "command": f"python tests/make_truth.py {n}",
    }  # fmt: skip
    tensors = {"verdict": torch.tensor(verdicts, dtype=torch.int8), "bound": torch.tensor(bounds), **network.state_dict()}
    save_file(tensors, FILE, metadata={"about": json.dumps(about)})
    print(about)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
