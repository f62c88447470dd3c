"""How fast augmentation is against PIL per sample, what it costs a training step, and what skipping padding taps gains.

    python benchmarks/training.py [--threads 1] [--repeats 5]

Prints three tables. Images are random 32x32 RGB, which changes no timing. The peer is what SimCLR code on GitHub does: one PIL
transform per sample and view (torchvision), here without a DataLoader's worker processes, so that both sides have the same cores.
Rounds alternate between the contestants; medians are printed.
"""

import argparse
import os
import statistics
import time
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torchvision import models, transforms

from robench.data.augment import VIEWS, to_unit
from robench.models.multihead import MultiHead
from robench.training.loop import Loop
from robench.training.objectives import OBJECTIVES
from robench.training.recipes import RECIPES
from robench.training.spec import TrainSpec
from robench.types import Dataset

BATCH = 256

PEERS = {
    "standard": [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()],
    "simclr": [
        transforms.RandomResizedCrop(32),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.GaussianBlur(3),
        transforms.ToTensor(),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads, batches of {BATCH}\n"
    )
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    print("| view | robench images/s | PIL per sample images/s | ratio |\n|---|---:|---:|---:|")
    for name, view in VIEWS.items():
        ours, peer = alternate(partial(view, images, generator, mirror=True), partial(per_sample, name, images), arguments.repeats)
        print(f"| {name} | {BATCH / ours:,.0f} | {BATCH / peer:,.0f} | {peer / ours:.1f} |")
    print("\n| training step (resnet18, fp32) | images/s | without augmentation | share |\n|---|---:|---:|---:|")
    for arch in ("single", "contrastive"):
        with_views, without = alternate(
            training_step(arch, images, OBJECTIVES[arch].views), training_step(arch, images, "none"), arguments.repeats
        )
        print(f"| {arch} | {BATCH / with_views:,.0f} | {BATCH / without:,.0f} | {without / with_views:.0%} |")
    print("\n| training step (single, fp32) | images/s | torchvision's resnet18 | ratio |\n|---|---:|---:|---:|")
    ours, plain = alternate(training_step("single", images, "standard"), plain_step(images), arguments.repeats)
    print(f"| resnet18 | {BATCH / ours:,.0f} | {BATCH / plain:,.0f} | {plain / ours:.2f} |")


def per_sample(name: str, images: torch.Tensor) -> torch.Tensor:
    transform = transforms.Compose(PEERS[name])
    to_pil = transforms.ToPILImage()
    return torch.stack([transform(to_pil(image)) for image in images])


def training_step(arch: str, images: torch.Tensor, views: str, backbone: torch.nn.Module | None = None):
    """One step of a variant on a full batch; ``backbone`` takes the place of its own."""
    VIEWS["none"] = lambda pixels, generator, mirror: to_unit(pixels)
    dataset = Dataset("random", "train", images, torch.arange(BATCH) % 10, tuple("0123456789"))
    spec = TrainSpec.of(arch, dataset, views=views)
    model = MultiHead("resnet18", OBJECTIVES[arch].heads(dataset, RECIPES["paper"]))
    model.backbone = backbone or model.backbone
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.lr, weight_decay=spec.weight_decay, fused=True)
    return partial(Loop(spec, model, optimizer, dataset, "cpu").step, torch.arange(BATCH), torch.Generator().manual_seed(0))


def plain_step(images: torch.Tensor):
    """The same step on torchvision's own module, channels_last as well."""
    plain = models.resnet18(weights=None)
    plain.fc = torch.nn.Identity()
    return training_step("single", images, "standard", plain)


def alternate(first, second, repeats: int) -> tuple[float, float]:
    """Median seconds of each, A B A B ..., after one round that does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for times, run in zip(seconds, (first, second), strict=True):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    return statistics.median(seconds[0][1:]), statistics.median(seconds[1][1:])


if __name__ == "__main__":
    main()
