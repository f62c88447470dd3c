"""What a picture of ImageNet costs an H100 under attack: operations that are counted, at the share of the peak that was measured on a small network.

Nothing here was measured on ImageNet or at 224x224. ``python benchmarks/scale.py --imagenet`` prints the tables.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robench.attacks.registry import FAST_BUDGET
from robench.models.backbones import BACKBONES
from robench.models.classifier import Classifier
from robench.models.rewrite import cheaper_twin
from robench.types import AUTOATTACK_UNITS, PassOptions

MODELS = {"ResNet-50": "resnet50", "ViT-B/16": "vit_b_16"}  # torchvision's, at 224x224
SIZE, SMALL = 224, 32
PEAKS = {"fp32": 67e12, "TF32": 495e12, "bf16": 989e12}  # operations a second of an H100 SXM, dense, as NVIDIA states them
WHERE = "one NVIDIA H100 80GB, torch 2.11.0+cu130, ResNet-18 at 32x32 (`cifar10-single-nfgsm-0`), 1,024 images a pass, robench at commit bcc5c81"


class Rate(NamedTuple):
    """Gradient steps a second as they were measured, and whether BatchNorm lay in the convolutions."""

    precision: str
    graphed: bool
    folded: bool
    steps: int

    def __str__(self) -> str:
        return f"{self.precision} {'graphed' if self.graphed else 'eager'}"


RATES = (
    Rate("fp32", False, False, 74_584),
    Rate("fp32", True, False, 99_348),
    Rate("TF32", False, True, 157_147),
    Rate("TF32", True, True, 419_214),
    Rate("bf16", False, True, 126_811),
    Rate("bf16", True, True, 562_971),
)
SHOWN = ("fp32 eager", "fp32 graphed", "TF32 graphed")


class Passes(NamedTuple):
    """Forward passes without a gradient, and gradient steps: a forward and a backward pass each."""

    forwards: float
    steps: float

    @property
    def units(self) -> float:
        """As robench counts them: a forward pass 1, a backward pass 2."""
        return self.forwards + 3 * self.steps


# Of a sample that survives AutoAttack standard, as summary.csv counts it on a linear model (tests/test_imagenet_costs.py).
AUTOATTACK = Passes(AUTOATTACK_UNITS - 3 * 1_910, 1_910)


class Measured(NamedTuple):
    """A row of benchmarks/README.md: units of all samples, and how many of them survived."""

    units: int
    survivors: int
    samples: int

    def broken(self, survivor: Passes) -> Passes:
        """What each of the others has cost in the mean, as gradient steps."""
        left = self.units - self.survivors * survivor.units
        return Passes(0, left / (self.samples - self.survivors) / 3)


class Suite(NamedTuple):
    """What a sample costs that survives, and one that breaks or is wrong before."""

    survivor: Passes
    broken: Passes


def suites() -> dict[str, Suite]:
    """By name. All is about `cifar10-single-nfgsm-0`, an adversarially trained ResNet-18: no row of another kind was measured."""
    each = {
        "fast": (Passes(0, FAST_BUDGET * AUTOATTACK_UNITS / 3), Measured(104_575, 247, 1000)),
        "autoattack-screened": (AUTOATTACK._replace(steps=AUTOATTACK.steps + 1 + 7), Measured(328_920, 28, 100)),  # FGSM, PGD-7
        "autoattack": (AUTOATTACK, Measured(2_977_577, 247, 1000)),
    }
    return {name: Suite(survivor, measured.broken(survivor)) for name, (survivor, measured) in each.items()}


class Operations(NamedTuple):
    """Of one image: a forward pass, and a forward pass with the gradient with respect to the image."""

    forward: int
    step: int

    def of(self, passes: Passes) -> float:
        """All operations of some passes."""
        return passes.forwards * self.forward + passes.steps * self.step


def count(module: Callable[[Tensor], Tensor], image: Tensor) -> Operations:
    """Operations on one image, a multiplication and an addition counted as two; the module's weights are frozen."""
    image = image.requires_grad_()
    with FlopCounterMode(display=False) as forward:
        logits = module(image)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    return Operations(forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops())


def count_of(name: str) -> Operations:
    """Of torchvision's model of a name at 224x224, without weights and without computing anything.

    On a CPU the counter does not see what attention computes there: 33.7 of the ViT's 35.1 GFLOP, and 22.5 without a gradient (torch 2.14).
    """
    import torchvision

    with torch.device("meta"):
        module = getattr(torchvision.models, name)(weights=None).eval().requires_grad_(False)
        return count(module, torch.empty(1, 3, SIZE, SIZE))


def count_of_small(*, folded: bool) -> Operations:
    """Of the ResNet-18 that was measured."""
    module = nn.Sequential(BACKBONES["resnet18"].build(), nn.Linear(512, 10))
    image = torch.rand(1, 3, SMALL, SMALL)
    classifier = Classifier(module.eval().requires_grad_(False), 10)
    return count(cheaper_twin(classifier, PassOptions(folded=folded), image), image.clone())


def speeds() -> dict[str, float]:
    """Operations a second of each way of computing, from the measured steps."""
    small = {folded: count_of_small(folded=folded) for folded in (False, True)}
    return {str(rate): rate.steps * small[rate.folded].step for rate in RATES}


def provenance(survivors: float) -> Iterator[str]:
    """What of it is counted, what measured, what assumed; lines of markdown."""
    counted = {name: count_of(torchvisions) for name, torchvisions in MODELS.items()}
    small = {f"ResNet-18 at 32x32{' folded' * folded}": count_of_small(folded=folded) for folded in (False, True)}
    yield f"torch {version('torch')}, torchvision {version('torchvision')}.\n"
    yield "Counted (torch.utils.flop_counter, one image, weights frozen), GFLOP:\n"
    yield "| model | forward | gradient step |\n|---|---:|---:|"
    for name, each in (counted | small).items():
        yield f"| {name} | {each.forward / 1e9:.3f} | {each.step / 1e9:.3f} |"
    yield f"\nMeasured: gradient steps a second on {WHERE}; the share is of the peak that NVIDIA states for an H100 SXM:\n"
    yield "| passes | steps/s | TFLOP/s | peak | share |\n|---|---:|---:|---:|---:|"
    for rate, speed in zip(RATES, speeds().values(), strict=True):
        yield (
            f"| {rate}{', folded' * rate.folded} | {rate.steps:,} | {speed / 1e12:.1f} | {PEAKS[rate.precision] / 1e12:.0f} | "
            f"{speed / PEAKS[rate.precision]:.1%} |"
        )
    yield "\nCounted too: the passes of a survivor (of `fast` its budget, taken as gradient steps). Measured, for benchmarks/README.md: the units of all"
    yield "other samples, that break or are wrong before, here as gradient steps.\n"
    yield "| suite | survivor: forwards | gradient steps | other samples: gradient steps |\n|---|---:|---:|---:|"
    for name, suite in suites().items():
        yield f"| {name} | {suite.survivor.forwards:,.0f} | {suite.survivor.steps:,.0f} | {suite.broken.steps:.0f} |"
    yield (
        f"\nAssumed: {survivors:.0%} of the samples survive; the same share of the peak at 224x224 as on the small network, for forward passes as "
        "for gradient steps; other samples break as early as CIFAR-10's do; reading is never waited for; no time between passes but what "
        "the measured rate has.\n"
    )


def pictures_per_second(n: int) -> tuple[float, float]:
    """JPEGs of 500x375 that a core reads, decodes, resizes to 256 and crops to 224 in a second of its own time; and their mean size in bytes."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from robench.data.pictures import read_picture
    from robench.data.preprocessing import Preprocessing

    preprocessing = Preprocessing(resize=256, crop=(SIZE, SIZE))
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for place, photograph in enumerate(load_sample_images().images):
            files.append(Path(folder) / f"{place}.jpg")
            Image.fromarray(photograph).resize((500, 375)).save(files[-1], quality=95)
        for file in files:  # imports, and the system's cache
            read_picture(file, preprocessing=preprocessing)
        started = time.thread_time()
        for file in islice(cycle(files), n):
            read_picture(file, preprocessing=preprocessing)
        return n / (time.thread_time() - started), sum(file.stat().st_size for file in files) / len(files)
