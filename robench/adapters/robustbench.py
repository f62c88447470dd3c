"""robustbench, and the clash of its files with torchattacks' wheel."""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import PackageNotFoundError, distribution


def damaged_files() -> list[str]:
    """Files of an installed robustbench that are not the ones it was installed with; empty where all is well or it is absent.

    torchattacks' wheels (2.11 to 3.5.1) carry an old top-level ``robustbench/``, so that whichever of the two is installed last
    wins, and removing torchattacks deletes robustbench's files; ``pip check`` sees none of it. The metadata is asked and not the
    import system, which finds torchattacks' copy where robustbench was never installed.
    """
    try:
        files = distribution("robustbench").files or []
    except PackageNotFoundError:
        return []
    return [str(file) for file in files if file.hash is not None and not _is_intact(file)]


def _is_intact(file) -> bool:
    try:
        content = file.locate().read_bytes()
    except OSError:
        return False
    digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, content).digest()).rstrip(b"=").decode()
    return digest == file.hash.value


def clash_warning() -> str | None:
    """What a user must be told before a run, or None."""
    damaged = damaged_files()
    if not damaged:
        return None
    return (
        f"{len(damaged)} files of robustbench were overwritten or removed by another package (torchattacks' wheel carries old copies), "
        f"{damaged[0]} among them; repair: pip install --force-reinstall --no-deps robustbench==1.1.1"
    )
