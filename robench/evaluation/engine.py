"""(Classifier, images, attacks, threat model) -> per-sample verdicts, chunk by chunk."""

from __future__ import annotations

import random
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from robench.data.augment import to_unit
from robench.evaluation.store import CLEAN, Chunk, ChunkVerdicts, RunFolder, attack_folder, chunk_seed, split
from robench.evaluation.verify import judge, margins
from robench.models.classifier import Classifier
from robench.types import Attack, Outcome, RobenchError, Suite, ThreatModel

SHOWN = 6  # samples of the first chunk whose images are kept for the report


def evaluate_suites(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    suites: list[Suite],
    *,
    threat: ThreatModel,
    folder: RunFolder,
    show_progress: bool = True,
) -> None:
    """Computes every chunk whose file does not exist yet: first without attack, then suite by suite.

    Args:
        classifier: on its device.
        images: (N, C, H, W), uint8 or float32 in [0, 1].
        labels: int64 (N,).
        suites: the columns to fill.
        threat: the threat model.
        folder: where verdicts go.
        show_progress: a bar per column on stderr.

    Raises:
        RobenchError: the model cannot classify the clean images, or the folder cannot be written. What an attack raises is
            recorded as its outcome on that chunk, and the run goes on.
    """
    chunks = split(len(images), folder.spec.chunk)
    for chunk in _progress(chunks, CLEAN, show_progress):
        if folder.read(CLEAN, chunk) is None:
            folder.write(CLEAN, chunk, _classify(classifier, *_load(classifier, images, labels, chunk), chunk))
    for suite in suites:
        for chunk in _progress(chunks, suite.name, show_progress):
            _run_suite(classifier, suite, *_load(classifier, images, labels, chunk), chunk, threat, folder)


def _run_suite(
    classifier: Classifier, suite: Suite, images: Tensor, labels: Tensor, chunk: Chunk, threat: ThreatModel, folder: RunFolder
) -> None:
    """One chunk through one suite; in a cascade each member gets what the earlier ones left undecided or robust."""
    clean = folder.read(CLEAN, chunk)
    assert clean is not None
    before = clean.outcome
    for place, member in enumerate(suite.members):
        where = attack_folder(suite, member)
        verdicts = folder.read(where, chunk)
        if verdicts is None or verdicts.failed:
            if (
                suite.cascade
            ):  # what later stages saw may not be what they will see now; gone first, so that a kill leaves none of it
                for later in suite.members[place + 1 :]:
                    folder.forget(attack_folder(suite, later), chunk)
            seed = chunk_seed(folder.spec.seed, member.family, chunk)
            verdicts = attack_chunk(classifier, member, images, labels, clean, before, threat, seed, keep=chunk.start == 0)
            folder.write(where, chunk, verdicts)
        if suite.cascade:
            before = verdicts.outcome


def attack_chunk(
    classifier: Classifier,
    attack: Attack,
    images: Tensor,
    labels: Tensor,
    clean: ChunkVerdicts,
    before: np.ndarray,
    threat: ThreatModel,
    seed: int,
    *,
    keep: bool = False,
) -> ChunkVerdicts:
    """One attack on the samples of a chunk that are neither misclassified nor broken before, judged by ourselves.

    Args:
        classifier: the model.
        attack: what to run.
        images, labels: of the whole chunk, on the classifier's device, float32 in [0, 1].
        clean: the chunk without attack.
        before: outcome per sample so far.
        threat: the threat model.
        seed: see ``chunk_seed``.
        keep: whether to keep a few images for the report.
    """
    done = np.isin(before, (Outcome.MISCLASSIFIED, Outcome.BROKEN, Outcome.SKIPPED))
    places = np.flatnonzero(~done)
    outcome = np.where(before == Outcome.MISCLASSIFIED, Outcome.MISCLASSIFIED, Outcome.SKIPPED).astype("U13")
    adv_pred = np.where(before == Outcome.MISCLASSIFIED, clean.clean_pred, -1)
    distance = np.where(before == Outcome.MISCLASSIFIED, 0, np.nan).astype(np.float32)
    margin = np.full(len(done), np.nan, np.float32)
    chosen = torch.from_numpy(places).to(images.device)
    adv_images, message = None, ""
    started = time.perf_counter()
    with classifier.counting() as passes:
        if len(places):
            adv_images, message = _craft(attack, classifier, images[chosen], labels[chosen], threat, seed)
    seconds = time.perf_counter() - started
    if message:
        outcome[places] = Outcome.ERROR
    elif adv_images is not None:
        judged = judge(classifier, images[chosen], labels[chosen], adv_images, threat)
        outcome[places], adv_pred[places], message = judged.outcomes, judged.adv_pred.numpy(), judged.complaint
        distance[places], margin[places] = judged.distance.numpy(), judged.margin.numpy()
    verdicts = ChunkVerdicts(
        clean.index, clean.label, clean.clean_pred, outcome, adv_pred, distance, margin,
        passes.forwards, passes.backwards, seconds, describe_machine(classifier.device), message,
    )  # fmt: skip
    if adv_images is None or not keep or np.isin(outcome[places], Outcome.UNDECIDED).any():
        return verdicts
    return _with_images(verdicts, images[chosen], adv_images, places)


def _craft(
    attack: Attack, classifier: Classifier, images: Tensor, labels: Tensor, threat: ThreatModel, seed: int
) -> tuple[Tensor | None, str]:
    """The attack's images, or None and what it raised."""
    try:
        with seeded(seed, images.device):
            adv_images = attack.fn(classifier, images.clone(), labels.clone(), threat, seed)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
            return adv_images, ""
    except Exception as error:  # an attack is somebody else's code: whatever it raises is a result about the attack
        place = traceback.extract_tb(error.__traceback__)[-1]
        hint = (
            "; the model passes no gradient: is there a no_grad or detach in it?" if "does not require grad" in str(error) else ""
        )
        return None, f"{type(error).__name__}: {error} ({place.name}, line {place.lineno}){hint}"


def _with_images(verdicts: ChunkVerdicts, images: Tensor, adv_images: Tensor, places: np.ndarray) -> ChunkVerdicts:
    """The same verdicts with images of those of the chunk's first correctly classified samples that were attacked."""
    from dataclasses import replace

    correct = np.flatnonzero(verdicts.outcome != Outcome.MISCLASSIFIED)[:SHOWN]
    rows = np.flatnonzero(np.isin(places, correct))
    return replace(
        verdicts,
        shown=verdicts.index[places[rows]],
        shown_clean=images[rows].float().cpu().numpy(),
        shown_adv=adv_images[rows].detach().float().cpu().numpy(),
    )


@torch.no_grad()
def _classify(classifier: Classifier, images: Tensor, labels: Tensor, chunk: Chunk) -> ChunkVerdicts:
    """A chunk without attack."""
    started = time.perf_counter()
    try:
        with classifier.counting() as passes:
            logits = classifier(images)
        again = classifier(images)
    except RobenchError:
        raise
    except Exception as error:  # somebody else's model may raise anything
        shape = tuple(images.shape)
        raise RobenchError(f"the model cannot classify images of shape {shape}: {type(error).__name__}: {error}") from error
    if not logits.isfinite().all():
        raise RobenchError(
            f"the model's logits are not finite on clean images {chunk.start} to {chunk.stop - 1}; nothing can be said about it"
        )
    if not torch.allclose(logits, again, rtol=1e-4, atol=1e-4):
        raise RobenchError(
            f"the model is random: two forward passes on the same images differ by {float((logits - again).abs().max()):.3g} in the logits. "
            "One draw cannot judge it, and robench has no vote over draws yet; fix its seed inside the model to evaluate one draw of it"
        )
    predicted = logits.argmax(1).cpu().numpy()
    truth = labels.cpu().numpy()
    outcome = np.where(predicted == truth, Outcome.ROBUST, Outcome.MISCLASSIFIED).astype("U13")
    return ChunkVerdicts(
        np.arange(chunk.start, chunk.stop), truth, predicted, outcome, predicted, np.zeros(len(truth), np.float32),
        margins(logits, labels).cpu().numpy(), passes.forwards, passes.backwards, time.perf_counter() - started,
        describe_machine(classifier.device),
    )  # fmt: skip


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds every global random generator inside the block, and puts them back after it."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def describe_machine(device: torch.device) -> str:
    """What the last bits of a result may depend on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{device.type}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def _load(classifier: Classifier, images: Tensor, labels: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """A chunk on the classifier's device."""
    part = images[chunk.start : chunk.stop].to(classifier.device)
    part = to_unit(part) if part.dtype == torch.uint8 else part.float()
    return part, labels[chunk.start : chunk.stop].to(classifier.device, torch.int64)


def _progress(chunks: list[Chunk], name: str, show: bool):
    from tqdm import tqdm

    return tqdm(
        chunks, desc=f"{name:>10}", unit="chunk", disable=not show, file=sys.stderr, mininterval=0.5 if sys.stderr.isatty() else 60
    )
