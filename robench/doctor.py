"""What is installed here, what clashes, what the device can do, and where data lies: everything that a question for help begins with."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

import robench
from robench.adapters.robustbench import clash_warning
from robench.data import DATASETS, data_folder
from robench.data.cifar import cifar_files
from robench.data.imagenet import has_imagenet
from robench.types import RobenchError

OPTIONAL = {
    "scikit-learn": "demo", "robustbench": "robustbench", "ray": "ray", "timm": "models", "huggingface_hub": "models",
    "transformers": "transformers", "pyarrow": "parquet",
}  # fmt: skip
SECONDS = 0.7  # a measurement of speed, of each kind
ROOM = 2 * 2**30  # bytes of free disk below which runs and downloads soon fail


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at.

    Attributes:
        topic: packages, clashes, device or files.
        name: what.
        says: what was found.
        repair: what to do, "" where nothing must be done.
    """

    topic: str
    name: str
    says: str
    repair: str = ""


def diagnose(data_dir: Path | None = None, *, measure: bool = True) -> list[Diagnosis]:
    """Everything, in the order in which it is shown.

    Args:
        data_dir: see ``data_folder``.
        measure: time a ResNet-18, which takes about two seconds.
    """
    diagnoses = [*_packages(), *_clashes(), *_device()]
    if measure and not any(each.repair for each in diagnoses if each.name in ("torch", "torchvision")):
        diagnoses += _speed()
    return [*diagnoses, *_files(data_folder(data_dir))]


def _packages() -> Iterator[Diagnosis]:
    yield Diagnosis("packages", "python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield Diagnosis("packages", "robench", f"{robench.__version__} in {Path(robench.__file__).parent}")
    for name, wanted in _required().items():
        yield _package(name, wanted)
    for name, extra in OPTIONAL.items():
        installed = _version(name)
        yield Diagnosis("packages", name, installed or f"not installed; optional: pip install 'robench[{extra}]'")


def _required() -> dict[str, str]:
    """What robench cannot do without, to the versions that it takes."""
    from packaging.requirements import Requirement

    try:
        named = [Requirement(line) for line in requires("robench") or []]
    except PackageNotFoundError:  # run from a folder that was never installed
        named = [Requirement(name) for name in ("torch", "torchvision", "torchattacks", "pyautoattack", "numpy", "scipy", "pandas")]
    return {each.name: str(each.specifier) for each in named if each.marker is None}


def _package(name: str, wanted: str) -> Diagnosis:
    from packaging.specifiers import SpecifierSet

    installed = _version(name)
    repair = f"pip install '{name}{wanted}'"
    if installed is None:
        return Diagnosis("packages", name, "not installed", repair)
    if not SpecifierSet(wanted).contains(installed, prereleases=True):
        return Diagnosis("packages", name, f"{installed}, expected {wanted}", repair)
    return Diagnosis("packages", name, installed)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _clashes() -> Iterator[Diagnosis]:
    warning = clash_warning()
    if warning:
        says, _, repair = warning.partition("; repair: ")
        yield Diagnosis("clashes", "robustbench", says, repair)
    elif _version("robustbench"):
        yield Diagnosis("clashes", "robustbench", "its files are those that it was installed with")
    else:
        yield Diagnosis("clashes", "robustbench", "not installed, so that torchattacks' old copy of its files harms nobody")
    for name, repair in (
        ("torch", "pip install --force-reinstall torch"),
        ("torchvision", "pip install --upgrade torch torchvision"),
    ):
        failed = _import_failure(name)
        yield Diagnosis("clashes", name, failed or "imports", repair if failed else "")


def _import_failure(name: str) -> str:
    """Why a library cannot be imported, or ""; a torchvision built for another torch fails here and nowhere else."""
    from importlib import import_module

    try:
        import_module(name)
    except Exception as error:  # ImportError, OSError of a shared library, RuntimeError of an operator that does not exist
        return f"cannot be imported ({type(error).__name__}: {str(error).strip().splitlines()[0][:150]})"
    return ""


def _device() -> Iterator[Diagnosis]:
    try:
        import torch
    except (ImportError, OSError):
        return
    from robench.evaluation.device import usable_cores

    total, available = memory()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    yield Diagnosis("device", "processor", f"{_processor()}, {usable_cores()} of {os.cpu_count()} cores usable{load}")
    yield Diagnosis("device", "memory", f"{total / 2**30:.1f} GiB, {available / 2**30:.1f} GiB available" if total else "unknown")
    yield Diagnosis(
        "device", "vectors", f"{torch.backends.cpu.get_cpu_capability()}, bf16 in hardware: {'yes' if bf16() else 'no'}"
    )
    if torch.cuda.is_available():
        for place in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(place)
            capability = f"compute capability {about.major}.{about.minor}"
            yield Diagnosis("device", f"cuda:{place}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {capability}")
    elif Path("/dev/nvidia0").exists():
        repair = "install a driver for it" if torch.version.cuda else "install a torch that is built for CUDA"
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        yield Diagnosis("device", "cuda", f"there is an NVIDIA card, which torch does not see; this torch {built}", repair)
    else:
        yield Diagnosis("device", "cuda", "none")


def _processor() -> str:
    from robench.evaluation.environment import describe_environment

    return str(describe_environment("cpu", 1)["processor"])


def bf16() -> bool:
    """Whether the processor computes in bf16 itself; where it does not, bf16 is many times slower than float32."""
    import torch

    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


class Memory(NamedTuple):
    """Bytes in all, and those that are available; 0 and 0 where the system does not say."""

    total: int
    available: int


def memory() -> Memory:
    """How much memory there is; a container's limit counts."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (1024 * int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return Memory(0, 0)
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        return Memory(min(total, limit), min(free, max(limit - used, 0)))
    except (OSError, ValueError):  # no limit
        return Memory(total, free)


def _speed() -> Iterator[Diagnosis]:
    """Images a second of a ResNet-18, forward and backward at 32x32, in float32 and in bf16."""
    import torch

    from robench.evaluation.device import use_device

    with use_device("auto") as device:
        device_text = device if device != "cpu" else f"{torch.get_num_threads()} threads"
        speed = {precision: images_per_second(_training_step(device, precision)) for precision in ("fp32", "bf16")}
    slow = "; slower than fp32 here: do not train with --precision bf16" if speed["bf16"] < speed["fp32"] else ""
    for precision, images in speed.items():
        note = slow if precision == "bf16" else ", ResNet-18 at 32x32, forward and backward"
        yield Diagnosis("device", precision, f"{images:,.0f} images/s on {device_text}{note}")


BATCH = 64


def _training_step(device: str, precision: str) -> Callable[[], None]:
    import torch

    from robench.models.backbones import BACKBONES

    model = BACKBONES["resnet18"].build().to(device).to(memory_format=torch.channels_last)
    images = torch.rand(BATCH, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=precision == "bf16"):
            loss = model(images).float().square().mean()
        loss.backward()
        model.zero_grad()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return step


def images_per_second(step: Callable[[], None]) -> float:
    """How many images of ``BATCH`` a call goes through in a second; the first call counts only where it takes long."""
    started = time.perf_counter()
    step()
    first = time.perf_counter() - started
    if first > 3 * SECONDS:
        return BATCH / first
    started, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - started < SECONDS:
        step()
        calls += 1
    return BATCH * calls / (time.perf_counter() - started)


def _files(folder: Path) -> Iterator[Diagnosis]:
    source = "--data-dir, $ROBENCH_DATA or the user's cache"
    yield Diagnosis("files", "data folder", f"{folder} ({source}){'' if folder.exists() else ', not there yet'}")
    for name in DATASETS:
        yield _data_set(name, folder)
    zoo = folder / "robustbench"
    yield Diagnosis("files", "zoo models", f"{zoo}: {len(list(zoo.rglob('*.pt')))} files")
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    yield Diagnosis("files", "Hub models", f"{hub}{'' if hub.exists() else ', not there yet'}")
    for name, place in (("free disk, data", folder), ("free disk, here", Path.cwd())):
        free = shutil.disk_usage(next(each for each in (place, *place.resolve().parents) if each.exists())).free
        yield Diagnosis("files", name, f"{free / 2**30:.1f} GiB", f"make room on the disk of {place}" if free < ROOM else "")


def _data_set(name: str, folder: Path) -> Diagnosis:
    if name == "digits":
        return Diagnosis(
            "files", name, "complete" if _version("scikit-learn") else "needs scikit-learn: pip install 'robench[demo]'"
        )
    if name == "imagenet":
        there = has_imagenet(folder)
        return Diagnosis("files", name, f"there, in {there}" if there else "not there; only your own copy can be read")
    try:
        found = cifar_files(name, folder)
    except (RobenchError, ImportError, RuntimeError) as error:
        return Diagnosis("files", name, f"cannot be looked at: {str(error).splitlines()[0]}")
    if found.damaged:
        remedy = f"delete {found.folder}; the next command downloads it again"
        return Diagnosis("files", name, f"{found.folder}: damaged: {', '.join(found.damaged)}", remedy)
    if found.missing:
        some = f"{found.folder}: {len(found.missing)} files missing"
        return Diagnosis("files", name, some if found.folder.exists() else "not there; downloaded when it is needed")
    return Diagnosis("files", name, f"complete in {found.folder}")
