"""What ``gpu.py`` measures with: a model, images, a clock that ends what takes too long, and rows of markdown."""

import time
from contextlib import contextmanager

import click
import torch

from robench.models.classifier import Classifier, Passes

WAYS = {"eager": ("fp32", False), "graphed": ("fp32", True), "graphed, TF32": ("tf32", True)}
OVER = "time over"


class TimeOver(BaseException):
    """Ends a call from inside the model; no Exception, so that no attack and no engine takes it for a result."""


@contextmanager
def limited(deadline):
    """Counts the samples that go through any classifier inside the block, and ends it at the first pass behind ``deadline``."""
    total, forward = Passes(), Classifier.forward

    def note(gradient):
        total.backwards += len(gradient)

    def counting(self, images):
        if time.perf_counter() > deadline:
            raise TimeOver
        logits = forward(self, images)
        total.forwards += len(images)
        if logits.requires_grad:
            logits.register_hook(note)
        return logits

    Classifier.forward = counting
    try:
        yield total
    finally:
        Classifier.forward = forward


class Bench:
    """The model, the images and the time.

    Args:
        make: a fresh classifier on the device: nothing is rewritten or recorded of it yet.
        images, labels: (N, C, H, W) and (N,), on the device.
        device: its name.
        quick: tiny numbers.
    """

    def __init__(self, make, images, labels, device, quick):
        self.make, self.images, self.labels, self.device, self.quick = make, images, labels, device, quick
        self.sizes = (2, 4) if quick else (32, 128, 256, 1024)
        self.deadline = float("inf")  # of the part that runs
        self.robust = {}  # by what was run: who was left

    @property
    def left(self):
        return self.deadline - time.perf_counter()

    def wait(self):
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def seconds(self, work):
        """Of one call, until the device is done, and what it returned."""
        self.wait()
        started = time.perf_counter()
        found = work()
        self.wait()
        return time.perf_counter() - started, found

    def cut(self, work, most=float("inf")):
        """(seconds, units, what it returned or None where the time was over) of a call of at most so many seconds."""
        started, found = time.perf_counter(), None
        with limited(min(self.deadline, started + most)) as passes:
            try:
                found = work()
                self.wait()
            except TimeOver:
                pass
        return time.perf_counter() - started, passes.forwards + 2 * passes.backwards, found


def row(what, *cells):
    click.echo(f"| {what} | {' | '.join(cells)} |")


def heading(*names):
    click.echo("\n" + f"| {' | '.join(names)} |\n|---|" + "---:|" * (len(names) - 1))


def cell(bench, key, work, most=float("inf"), repeats=2):
    """The fastest of some warm calls; where it was cut, the rate until then."""
    if bench.left <= 0:
        return OVER
    best = float("inf")
    for again in range(1 if bench.quick else repeats):
        if again and bench.left <= 0:
            break
        seconds, units, found = bench.cut(work, most)
        if found is None:
            break
        bench.robust[key], best = found, min(best, seconds)
    if best < float("inf"):
        return f"{best:.2f} s, {int(bench.robust[key].sum())} left"
    return f"cut off after {seconds:.1f} s: {units / seconds:,.0f} units/s"


@contextmanager
def brought(library):
    """Whether a library can be imported here."""
    try:
        __import__(library)
    except ImportError:
        yield False
    else:
        yield True
