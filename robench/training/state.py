"""The state of an unfinished training on disk: weights, optimiser and the epochs that are done, written when it is due."""

from __future__ import annotations

import copy
import io
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from robench.files import write_atomically
from robench.types import RobenchError

DUE = 30.0  # seconds after a write, from which the next finished epoch is written


class StateFile:
    """Keeps the last finished epoch: on disk where that is due, else as a copy on the device, which is written when the training ends.

    The first epoch is always written: only then has the optimiser its full size, so a disk that is too small shows. A copy is made only
    where epochs take less than half a minute. It is what lets a training end inside an epoch and still keep the one before.

    Args:
        path: of the file.
        wanted: the training's settings, which a resume compares.
        clock: seconds.
    """

    def __init__(self, path: Path, wanted: dict[str, Any], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.wanted, self.clock = path, wanted, clock
        self.unwritten: dict[str, Any] | None = None
        self.written: float | None = None  # when an epoch of this process was

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever ends the block, the last finished epoch is on disk after it."""
        try:
            yield
        finally:
            self.flush()

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[Any]) -> None:
        """Writes what a training begins with: a folder that cannot be written shows now, not after an epoch."""
        self._write(self._content(model, optimizer, history))

    def finished(self, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[Any]) -> None:
        """Takes note of an epoch."""
        self.unwritten = self._content(model, optimizer, history)
        if self.written is not None and self.clock() - self.written < DUE:
            self.unwritten = copy.deepcopy(self.unwritten)
            return
        self.flush()
        self.written = self.clock()

    def flush(self) -> None:
        """Writes the last finished epoch, unless it is on disk."""
        if self.unwritten is not None:
            self._write(self.unwritten)
            self.unwritten = None

    def _content(self, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[Any]) -> dict[str, Any]:
        return {
            "spec": json.dumps(self.wanted), "model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history,
        }  # fmt: skip

    def _write(self, content: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomically(self.path, buffer.getvalue())


def resume(
    saved: bytes, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, wanted: dict[str, Any]
) -> list[dict[str, float]]:
    """Loads the state of an unfinished training into model and optimiser; returns its history, empty where there is none.

    Args:
        saved: the file's content, empty where there is none.
        path: for the messages.
        model, optimizer: what is changed.
        wanted: the settings of this training.

    Raises:
        RobenchError: the state cannot be read, or is of other settings.
    """
    if not saved:
        return []
    try:
        state = torch.load(io.BytesIO(saved), map_location=next(model.parameters()).device, weights_only=True)
        earlier = json.loads(state["spec"])
    except Exception as error:  # torch.load raises half a dozen unrelated types on a damaged file
        raise RobenchError(f"the unfinished training in {path} cannot be read ({error}); delete it to start anew") from None
    refuse_difference(path, earlier, wanted)
    model.load_state_dict(state["model"])
    for group, there in zip(optimizer.param_groups, state["optimizer"]["param_groups"], strict=True):
        there |= {
            name: value for name, value in group.items() if name != "params"
        }  # which kind of Adam it is, is not the state's to say
    optimizer.load_state_dict(state["optimizer"])
    return list(state["history"])


def refuse_difference(path: Path, earlier: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Whether two trainings are the same.

    Raises:
        RobenchError: they are not.
    """
    different = [name for name in wanted if earlier.get(name) != wanted[name]]
    if different:
        named = "; ".join(f"{name} is {earlier.get(name)!r} there and {wanted[name]!r} here" for name in different)
        raise RobenchError(f"{path} is from a training with other settings: {named}. Choose another `out`, or delete it")


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM, which a scheduler sends before it kills, ends the block as Ctrl-C does.

    Only in the main thread, where Python lets handlers be set, and only where nobody else handles it.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
