"""How fast a gradient step of a checkpoint is by each way of computing it, and how far that is from what the processor can multiply.

    python benchmarks/passes.py --ckpt FILE [--threads 2] [--batch 250] [--compile]

The peak is a large matrix product's, in the same precision; a step's operations are counted by torch's FlopCounterMode on the module that runs.
"""

import time
from pathlib import Path

import click
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from robench.evaluation.device import use_device
from robench.models.rewrite import cheaper_twin
from robench.models.subject import classifier_of_checkpoint
from robench.types import NO_REWRITE, PassOptions

WAYS = {"own": NO_REWRITE, "folded": PassOptions(folded=True), "folded, bf16": PassOptions(folded=True, precision="bf16")}

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def step(classifier, images, labels):
    queries = images.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(classifier(queries), labels, reduction="sum")
    return torch.autograd.grad(loss, queries)[0]


def seconds_of(work, device):
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def peak(device, dtype, size=2048, repeats=3):
    """Operations per second of a matrix product at its best, as such or as a 1x1 convolution: torch has a library for each on a CPU."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    pixels = left.view(1, size // 32, 32, size).permute(0, 3, 1, 2)  # channels last
    kernel = right[:, :, None, None].to(memory_format=torch.channels_last)
    ways = (lambda: left @ right, lambda: torch.nn.functional.conv2d(pixels, kernel))
    return 2 * size**3 / min(seconds_of(way, device) for way in ways for _ in range(repeats))


@click.command()
@click.option("--ckpt", required=True, type=click.Path(path_type=Path))
@click.option("--batch", default=250)
@click.option("--repeats", default=9)
@click.option("--threads", default=2)
@click.option("--device", default="cpu")
@click.option("--compile", "compiled", is_flag=True, help="With torch.compile too.")
def main(ckpt, batch, repeats, threads, device, compiled):
    ways = WAYS | ({"folded, compiled": PassOptions(folded=True, compiled=True)} if compiled else {})
    with use_device(device, threads) as chosen:
        subject = classifier_of_checkpoint(ckpt, None, chosen)
        classifier, generator = subject.classifier, torch.Generator().manual_seed(0)
        images = torch.rand(batch, 3, 32, 32, generator=generator).to(chosen)
        labels = torch.randint(0, classifier.n_classes, (batch,), generator=generator).to(chosen)
        twins = {name: cheaper_twin(classifier, pass_options, images) for name, pass_options in ways.items()}
        operations = {}
        for name, twin in twins.items():
            if ways[name].compiled:  # the same operations, which the counter does not see
                operations[name] = operations["folded"]
                continue
            queries = images.clone().requires_grad_()
            with FlopCounterMode(display=False) as counter:  # it cannot follow torch.autograd.grad (2.14)
                torch.nn.functional.cross_entropy(twin(queries), labels).backward()
            operations[name] = counter.get_total_flops()
        spent = {name: [] for name in twins}
        tops = {precision: [] for precision in PRECISIONS}
        for _ in range(repeats):  # in turn, so that other work on the machine meets all of them
            for name, twin in twins.items():
                spent[name].append(seconds_of(lambda twin=twin: step(twin, images, labels), classifier.device))
            for precision, dtype in PRECISIONS.items():
                tops[precision].append(peak(classifier.device, dtype))
    click.echo(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads, {ckpt.stem}, batches of {batch}; "
        + ", ".join(f"{precision} matrix product {np.median(top) / 1e9:,.0f} GFLOP/s" for precision, top in tops.items())
        + "\n"
    )
    click.echo("| passes | gradient steps/s | against own | MFLOP a step | GFLOP/s | of the peak |")
    click.echo("|---|---:|---:|---:|---:|---:|")
    for name, pass_options in ways.items():
        rate = operations[name] / np.median(spent[name])
        ratio = np.median([own / this for own, this in zip(spent["own"], spent[name], strict=True)])
        click.echo(
            f"| {name} | {batch / np.median(spent[name]):,.0f} | {ratio:.2f} | {operations[name] / batch / 1e6:.0f} | {rate / 1e9:,.1f} | "
            f"{np.median([operations[name] / each / top for each, top in zip(spent[name], tops[pass_options.precision], strict=True)]):.0%} |"
        )


if __name__ == "__main__":
    main()
