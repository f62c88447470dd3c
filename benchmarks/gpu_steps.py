"""The passes, training steps and launches of ``gpu.py``."""

import copy
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import click
import torch
from gpu_attacks import ours
from gpu_bench import OVER, WAYS, heading, row
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from robench.models.arithmetic import arithmetic
from robench.models.graphed import graphed
from robench.models.multihead import MultiHead
from robench.models.rewrite import cheaper_twin
from robench.training.captured import graph_for
from robench.training.loop import Loop, adam
from robench.training.objectives import OBJECTIVES
from robench.training.recipes import RECIPES
from robench.training.spec import TrainSpec
from robench.training.state import StateFile
from robench.types import NO_REWRITE, Dataset, PassOptions

TILE = 32
VARIANTS = {
    "own, fp32": NO_REWRITE, "folded, fp32": PassOptions(folded=True), "folded, TF32": PassOptions(folded=True, precision="tf32"),
    "folded, bf16": PassOptions(folded=True, precision="bf16"),
}  # fmt: skip
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cuGraphLaunch", "cudaLaunchCooperative")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
COPIES = ("cudaMemcpy",)


def passes(bench):
    heading("images/s, eager -> graphed", *(f"n = {n:,}" for n in bench.sizes))
    for needs in ("gradient", "forward"):
        for name, options in VARIANTS.items():
            twin = cheaper_twin(bench.make(), options, bench.images)
            cells = []
            for n in bench.sizes:
                images = bench.images[torch.arange(n, device=bench.images.device) % len(bench.images)]
                with arithmetic(options.precision, bench.device):
                    rates = [pass_rate(bench, twin, images, needs == "gradient", record) for record in (False, True)]
                cells.append(" -> ".join(OVER if rate is None else f"{rate:,.0f}" for rate in rates))
            row(f"{name}: {needs}", *cells)


def pass_rate(bench, twin, images, gradient, record):
    """Images a second; None where the time is over."""

    def one():
        with torch.set_grad_enabled(gradient):
            queries = images.clone().requires_grad_(gradient)
            logits = twin(queries)
            return torch.autograd.grad(logits.sum(), queries)[0] if gradient else logits

    if bench.left <= 0:
        return None
    with graphed(twin) if record else nullcontext():
        for _ in range(3):
            one()
        once, _ = bench.seconds(one)
        calls = 1 if bench.quick else max(3, min(200, int(0.25 / max(once, 1e-5))))
        seconds, _ = bench.seconds(lambda: [one() for _ in range(calls)])
    return calls * len(images) / seconds


def random_set(batch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4 * batch, 3, TILE, TILE), dtype=torch.uint8, generator=generator)
    return Dataset("random", "train", images, torch.arange(4 * batch) % 10, tuple("0123456789"))


def loop_of(device, arch, precision, record, quick):
    """A training of a variant, whose steps are to be taken, with a batch."""
    batch = 8 if quick else 256
    data = random_set(batch)
    spec = TrainSpec.of(arch, data, precision=precision, batch_size=batch, **({"backbone": "small"} if quick else {}))
    model = MultiHead(spec.backbone, OBJECTIVES[arch].heads(data, RECIPES[spec.recipe])).to(device)
    model = model.to(memory_format=torch.channels_last).train()
    loop = Loop(spec, model, adam(model, spec, device), data, device, graph=graph_for(device) if record else None)
    return loop, torch.arange(batch, device=device), torch.Generator(device).manual_seed(0)


def step_rate(device, arch, precision, record, quick, seconds, begin=None):
    """Images a second of training steps, and whether they were captured.

    Args:
        begin: when to begin after the warm-up, by ``time.time``; at once by default.
    """
    loop, batch, generator = loop_of(device, arch, precision, record, quick)
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    with arithmetic(precision, device):
        for _ in range(2 if quick else 10):
            loop.step(batch, generator)
        wait()
        time.sleep(max(0.0, begin - time.time()) if begin else 0)
        started, steps = time.perf_counter(), 0
        while steps < 2 or (not quick and time.perf_counter() - started < seconds):
            for _ in range(1 if quick else 10):
                loop.step(batch, generator)
                steps += 1
            wait()
    return steps * len(batch) / (time.perf_counter() - started), loop.captured is not None


def training(bench):
    heading("training step", *WAYS)
    for arch in ("single", "contrastive"):
        cells = []
        for precision, record in WAYS.values():
            if bench.left <= 0:
                cells.append(OVER)
                continue
            rate, was = step_rate(bench.device, arch, precision, record, bench.quick, 2.0)
            cells.append(f"{rate:,.0f} images/s" + (" (not captured)" if record and not was else ""))
        row(arch, *cells)


def at_once(bench):
    """Several trainings as processes on one device."""
    arches = ["single", "contrastive"] if bench.quick else ["single", "single", "contrastive", "contrastive"]
    cells = {}
    for way in ("graphed", "eager", "graphed, TF32"):
        needed = 0 if bench.quick else 25
        cells[way] = OVER if bench.left <= needed else " + ".join(rates_at_once(bench, arches, way))
    row(f"at once: {', '.join(arches)}", *(cells[way] for way in WAYS))


def rates_at_once(bench, arches, way):
    begin = time.time() + (0 if bench.quick else 18)
    command = [
        sys.executable,
        str(Path(__file__).with_name("gpu.py")),
        "--device",
        bench.device,
        "--way",
        way,
        "--begin",
        str(begin),
        *["--quick"] * bench.quick,
    ]
    children = [subprocess.Popen([*command, "--train", arch], stdout=subprocess.PIPE, text=True) for arch in arches]
    try:
        return [f"{float(child.communicate(timeout=max(10.0, bench.left + 10))[0]):,.0f}" for child in children]
    except (subprocess.TimeoutExpired, ValueError):
        return ["failed or too late"]
    finally:
        for child in children:
            child.kill()


def launches(bench):
    """What the host does for one warm call, by the profiler."""
    on_gpu = bench.device.startswith("cuda")
    heading("a call", *WAYS)
    click.echo(
        "| (" + ("launches, waits and copies by the host; kernels of the device" if on_gpu else "operations, waits") + ") | | | |"
    )
    for name in ("pgd50", "fast"):
        classifier, cells = bench.make(), {}
        for way in ("graphed", "graphed, TF32", "eager"):
            needed = {"pgd50": 3, "fast": 15}[name] * (not bench.quick)
            work = ours(bench, classifier, name, *WAYS[way])
            cells[way] = OVER if bench.left <= needed or bench.cut(work)[2] is None else counted(bench, work, on_gpu)
        row(f"`{name}`", *(cells[way] for way in WAYS))
    cells = []
    for precision, record in WAYS.values():
        if bench.left <= 0:
            cells.append(OVER)
            continue
        loop, batch, generator = loop_of(bench.device, "contrastive", precision, record, bench.quick)
        with arithmetic(precision, bench.device):
            for _ in range(3):
                loop.step(batch, generator)
            cells.append(counted(bench, lambda loop=loop, batch=batch, generator=generator: loop.step(batch, generator), on_gpu))
    row("training step, contrastive", *cells)


def counted(bench, work, on_gpu):
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as seen:
        if bench.cut(work)[2] is None:
            return OVER
    averages = seen.key_averages()
    counts = {each.key: each.count for each in averages}
    if not on_gpu:
        operations = sum(count for key, count in counts.items() if key.startswith("aten::"))
        return f"{operations:,}, {counts.get('aten::_local_scalar_dense', 0) + counts.get('aten::nonzero', 0):,}"
    host = [sum(count for key, count in counts.items() if key.startswith(names)) for names in (LAUNCHES, WAITS, COPIES)]
    on_device = [each for each in averages if each.device_type == DeviceType.CUDA and not each.key.startswith(("Memcpy", "Memset"))]
    return ", ".join(f"{count:,}" for count in host) + f"; {sum(each.count for each in on_device):,}"


def state(bench):
    """Writing what an unfinished training has on disk."""
    if bench.left <= 0:
        row("a training's state, written", OVER, "", "")
        return
    loop, batch, generator = loop_of(bench.device, "single", "fp32", False, bench.quick)
    loop.step(batch, generator)
    with tempfile.TemporaryDirectory() as folder:
        file = StateFile(Path(folder) / "state", {})
        spent = min(bench.seconds(lambda: file.begin(loop.model, loop.optimizer, []))[0] for _ in range(3))
        megabytes = file.path.stat().st_size / 1e6
    kept, _ = bench.seconds(lambda: copy.deepcopy(loop.optimizer.state_dict()) and copy.deepcopy(loop.model.state_dict()))
    row(f"a training's state, {megabytes:,.0f} MB: written, kept on the device", f"{spent:.2f} s", f"{kept:.3f} s", "")
