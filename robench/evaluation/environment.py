"""What a result was computed with."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import robench

PACKAGES = ("torch", "torchvision", "torchattacks", "pyautoattack", "numpy", "pandas", "scipy", "pillow")


def describe_environment(device: str, threads: int) -> dict[str, object]:
    """Versions, processor, threads, and robench's own commit where it runs from a git checkout."""
    import torch

    named = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {
        "robench": robench.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "device": device,
        "processor": named,
        "threads": threads,
        "packages": {name: installed for name in PACKAGES if (installed := _version(name))},
    }


def command_line() -> str:
    """The command line of this process, as it is recorded, with the options that came from the environment in front."""
    prefix = f"ROBENCH_{sys.argv[1].upper()}_" if len(sys.argv) > 1 else "ROBENCH_"
    chosen = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(prefix)]
    return shlex.join([*chosen, "robench", *sys.argv[1:]])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that this file lies in, with ``-dirty`` behind it where files were changed."""
    package = Path(robench.__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
