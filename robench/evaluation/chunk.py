"""One attack on one chunk: crafted under watch, judged by ourselves."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robench.evaluation.adv_images import PackedImages, pack
from robench.evaluation.guard import Guard
from robench.evaluation.memory import backing_off, is_out_of_memory, peak_bytes
from robench.evaluation.referee import AllDecided, Referee, Snapshot
from robench.evaluation.store import LEFT_OUT, Chunk, ChunkVerdicts
from robench.evaluation.verify import judge, margins, verdict_logits
from robench.models.classifier import Classifier
from robench.models.rewrite import searcher
from robench.models.seeded import seeded
from robench.types import Attack, Keeps, Outcome, RobenchError, ThreatModel

if TYPE_CHECKING:
    from robench.types import Images, Labels

SHOWN, SHOWN_LARGE, LARGE = 12, 4, 96  # samples of the first chunk whose images are kept for the report; of images wider than LARGE
DECIDED = (Outcome.MISCLASSIFIED, Outcome.BROKEN, Outcome.SKIPPED)
CUT: Any = object()


@dataclass(frozen=True, eq=False)
class ChunkData:
    """A chunk on the classifier's device.

    Attributes:
        chunk: its place in the data set.
        images, labels: float32 in [0, 1] and int64, of every sample.
        clean: the chunk without attack.
    """

    chunk: Chunk
    images: Images
    labels: Labels
    clean: ChunkVerdicts


@dataclass(frozen=True)
class Conditions:
    """How an attack is run.

    Attributes:
        threat: the threat model.
        seed: see ``chunk_seed``.
        counts_best: the outcome is what the best query shows, not what was returned; the call ends once every sample is decided.
        save: keep the adversarial images.
        craft_all: with ``save``, craft on misclassified samples too.
    """

    threat: ThreatModel
    seed: int
    counts_best: bool = False
    save: bool = False
    craft_all: bool = False


@dataclass(frozen=True, eq=False)
class Crafted:
    """What an attack left behind for the samples that it was given.

    Attributes:
        returned: its images, or None where it failed.
        best, found, found_at: see ``Referee``; of no meaning where it was not watched.
        message: what it failed with, or "".
        ties: see ``ChunkVerdicts``.
    """

    returned: Images | None
    best: Images
    found: Tensor
    found_at: Tensor
    message: str = ""
    ties: int = 0


@dataclass(frozen=True)
class Cost:
    """Passes in samples, seconds, and how the attack was run where that is not by itself."""

    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    mode: str = ""


@dataclass(frozen=True, eq=False)
class Found:
    """What the samples that were attacked turned out to be; see ``ChunkVerdicts``.

    Attributes:
        images: the returned ones, in their place the best query where only that one is adversarial and it counts or is to be saved,
            and the clean image where it is invalid; None where there are none.
    """

    outcome: np.ndarray
    best: np.ndarray
    adv_pred: np.ndarray
    distance: np.ndarray
    margin: np.ndarray
    message: str = ""
    ties: int = 0
    images: Images | None = field(default=None)
    found_at: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    @classmethod
    def nothing(cls, images: Images) -> Found:
        """Of no samples.

        Args:
            images: (0, C, H, W).
        """
        text, number = np.zeros(0, "U13"), np.zeros(0, np.float32)
        return cls(text, text, np.zeros(0, np.int64), number, number, images=images)


def attack_chunk(
    classifier: Classifier, guard: Guard, attack: Attack, data: ChunkData, before: np.ndarray, conditions: Conditions,
    prefixes: tuple[Attack, ...] = (),
) -> list[tuple[Attack, ChunkVerdicts, PackedImages | None]]:  # fmt: skip
    """One attack on the samples of a chunk that are neither misclassified nor broken before.

    Args:
        classifier: the model under test.
        guard: of its weights.
        attack: what to run.
        data: the chunk.
        before: outcome per sample so far.
        conditions: how.
        prefixes: attacks that take the same steps, but fewer, whose results the same run gives.

    Returns:
        Verdicts, and images where they are to be saved, of the prefixes in their order and of the attack itself at the end.
    """
    everywhere = attack.stored is not None or (attack.elsewhere is not None and attack.elsewhere.whole_chunks)
    places = np.arange(len(before)) if everywhere else np.flatnonzero(~np.isin(before, DECIDED))
    crafted, snapshots, cost = _craft(classifier, guard, attack, data, places, conditions, prefixes)
    made = []
    for prefix in prefixes:
        short = snapshots.get(prefix.params["steps"])
        if short is not None:
            made.append(
                (prefix, Crafted(short.queries, short.best, short.found, short.found_at), Cost(mode=f"prefix of {attack.name}"))
            )
        elif crafted.returned is None and len(places):  # the run that was to serve both failed before
            made.append((prefix, replace(crafted, ties=0), Cost(mode=f"prefix of {attack.name}")))
        else:  # an attack that asks the model nothing, as PGD at eps 0
            alone, _, spent = _craft(classifier, guard, prefix, data, places, conditions, ())
            made.append((prefix, alone, spent))
    return [
        (each, *_conclude(classifier, each, data, before, places, own, conditions, spent))
        for each, own, spent in [*made, (attack, crafted, cost)]
    ]


def _conclude(
    classifier: Classifier, attack: Attack, data: ChunkData, before: np.ndarray, places: np.ndarray, crafted: Crafted,
    conditions: Conditions, cost: Cost,
) -> tuple[ChunkVerdicts, PackedImages | None]:  # fmt: skip
    """Judges what was crafted for the samples at ``places``, and packs the images."""
    chosen = torch.from_numpy(places).to(data.images.device)
    images, labels = data.images[chosen], data.labels[chosen]
    found = _judge_crafted(classifier, images, labels, crafted, conditions) if len(places) else Found.nothing(images)
    verdicts = _spread(found, data.clean, before, places, cost, describe_machine(classifier), peak_bytes(classifier.device))
    if found.images is None:
        return verdicts, None
    packed = _pack(classifier, attack, data, places, found, conditions) if conditions.save else None
    if packed is not None:
        verdicts = replace(verdicts, adv_digest=packed.digest)
    if data.chunk.start == 0 and len(places):
        verdicts = _with_images(classifier, verdicts, images, found.images, places)
    return verdicts, packed


def _judge_crafted(classifier: Classifier, images: Images, labels: Labels, crafted: Crafted, conditions: Conditions) -> Found:
    """What the returned images are, and what the best queries add to them."""
    n, message, adv_images = len(images), crafted.message, crafted.returned
    outcome, adv_pred = np.full(n, Outcome.ERROR, "U13"), np.full(n, -1)
    distance = margin = np.full(n, np.nan, np.float32)
    if adv_images is not None:
        judged = judge(classifier, images, labels, adv_images, conditions.threat)
        outcome, adv_pred, message = np.array(judged.outcomes, "U13"), judged.adv_pred.numpy(), judged.complaint
        distance, margin = judged.distance.numpy(), judged.margin.numpy()
    rows = np.flatnonzero(crafted.found.cpu().numpy() & (outcome != Outcome.BROKEN))
    best, ties = outcome.copy(), crafted.ties
    if isinstance(adv_images, Tensor) and adv_images.shape == images.shape:
        invalid = torch.from_numpy(outcome == Outcome.INVALID).to(images.device)
        adv_images = torch.where(invalid[:, None, None, None], images, adv_images.to(images))
    else:
        adv_images = None
    if len(rows):
        where = torch.from_numpy(rows).to(images.device)
        seen = judge(classifier, images[where], labels[where], crafted.best[where], conditions.threat)
        held = np.array(seen.outcomes) == Outcome.BROKEN
        rows, ties = rows[held], ties + (int((~held).sum()) if classifier.draws == 1 else 0)
        best[rows] = Outcome.BROKEN
        if conditions.counts_best:
            outcome[rows], adv_pred[rows] = Outcome.BROKEN, seen.adv_pred.numpy()[held]
            distance[rows], margin[rows] = seen.distance.numpy()[held], seen.margin.numpy()[held]
        if adv_images is not None and (conditions.counts_best or conditions.save):
            adv_images[rows] = crafted.best[rows]
    return Found(outcome, best, adv_pred, distance, margin, message, ties, adv_images, crafted.found_at.cpu().numpy())


def _spread(
    found: Found, clean: ChunkVerdicts, before: np.ndarray, places: np.ndarray, cost: Cost, machine: str, peak: int
) -> ChunkVerdicts:
    """What was found at ``places`` as verdicts of the whole chunk. A model that is wrong already is not broken by anything."""
    wrong = before == Outcome.MISCLASSIFIED
    outcome = np.where(wrong, Outcome.MISCLASSIFIED, Outcome.SKIPPED).astype("U13")
    best, adv_pred = outcome.copy(), np.where(wrong, clean.clean_pred, -1)
    distance, margin = np.where(wrong, 0, np.nan).astype(np.float32), np.full(len(before), np.nan, np.float32)
    found_at = np.full(len(before), np.nan, np.float32)
    at_the_end = np.where(np.isnan(found.found_at), cost.forwards + 2 * cost.backwards, found.found_at)
    found_at[places] = np.where(found.best == Outcome.BROKEN, at_the_end, np.nan)
    adv_pred[places], distance[places], margin[places] = found.adv_pred, found.distance, found.margin
    outcome[places] = np.where(wrong[places], Outcome.MISCLASSIFIED, found.outcome)
    best[places] = np.where(wrong[places], Outcome.MISCLASSIFIED, found.best)
    return ChunkVerdicts(
        clean.index, clean.label, clean.clean_pred, outcome, adv_pred, distance, margin, cost.forwards, cost.backwards,
        cost.seconds, machine, found.message, best, found.ties, cost.mode, peak, found_at=found_at,
    )  # fmt: skip


def pass_over(previous: ChunkVerdicts, why: str) -> ChunkVerdicts:
    """The verdicts of a stage that is left out: who was robust before it stays so, with the image of the stage before."""
    broken = previous.outcome == Outcome.BROKEN
    outcome = np.where(broken, Outcome.SKIPPED, previous.outcome).astype("U13")
    return ChunkVerdicts(
        previous.index, previous.label, previous.clean_pred, outcome, np.where(broken, -1, previous.adv_pred),
        np.where(broken, np.nan, previous.distance).astype(np.float32), np.where(broken, np.nan, previous.margin).astype(np.float32),
        0, 0, 0.0, previous.machine, mode=f"{LEFT_OUT}: {why}",
    )  # fmt: skip


def _craft(
    classifier: Classifier, guard: Guard, attack: Attack, data: ChunkData, places: np.ndarray, conditions: Conditions,
    prefixes: tuple[Attack, ...],
) -> tuple[Crafted, dict[int, Snapshot], Cost]:  # fmt: skip
    """Runs the attack on the samples at ``places``."""
    chosen = torch.from_numpy(places).to(data.images.device)
    images, labels = data.images[chosen], data.labels[chosen]
    nobody = torch.zeros(len(places), dtype=torch.bool, device=images.device)
    nothing = Crafted(None, images, nobody, torch.full_like(nobody, float("nan"), dtype=torch.float32))
    if not len(places):
        return nothing, {}, Cost()
    if attack.stored is not None:
        return replace(nothing, returned=attack.stored[data.chunk.start : data.chunk.stop].to(images.device)), {}, Cost()
    victim = classifier
    started = time.perf_counter()
    if attack.elsewhere is not None:
        victim, victim_labels = attack.elsewhere.prepare(data.images, data.labels, torch.from_numpy(data.clean.index))
        labels = victim_labels[chosen]
    victim = searcher(victim, attack.search, images)
    own_guard = guard if victim is classifier else Guard(victim)
    cut = Keeps.ANY if conditions.counts_best else attack.keeps
    if classifier.draws > 1:  # one draw decides nothing
        cut = Keeps.LAST
    taps = [prefix.params["steps"] for prefix in prefixes]

    def attempt() -> tuple[Crafted, Referee, Cost]:
        with victim.counting() as passes:
            referee = Referee(
                images, labels, conditions.threat, classify=partial(_unwatched, victim.exact),
                cut=cut if attack.elsewhere is None else Keeps.LAST, taps=taps, passes=passes,
            )  # fmt: skip
            with victim.watched_by(referee):
                returned, message = _call(attack, victim, images, labels, conditions)
        complaint = own_guard.mend()
        if complaint:
            returned, message = None, complaint
        found = referee.found if attack.elsewhere is None else torch.zeros_like(referee.found)
        cost = Cost(passes.forwards, passes.backwards, time.perf_counter() - started)
        adv_images = referee.best if returned is CUT else returned
        found_at = torch.where(found, referee.found_at, float("nan"))
        return Crafted(adv_images, referee.best, found, found_at, message, referee.ties), referee, cost

    crafted, referee, cost = backing_off(victim, len(images), attempt)
    return crafted, referee.snapshots, cost


def _call(attack: Attack, victim: Classifier, images: Images, labels: Labels, conditions: Conditions) -> tuple[Any, str]:
    """The attack's images, ``CUT`` where the referee ended it, or None and what it raised."""
    try:
        with seeded(conditions.seed, images.device):
            adv_images = attack.fn(victim, images.clone(), labels.clone(), conditions.threat, conditions.seed)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
            return adv_images, ""
    except AllDecided:
        return CUT, ""
    except Exception as error:  # an attack is somebody else's code: whatever it raises is a result about the attack
        if is_out_of_memory(error) and (victim.largest_pass or len(images)) > 1:
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        hint = (
            "; the model passes no gradient: is there a no_grad or detach in it?" if "does not require grad" in str(error) else ""
        )
        return None, f"{type(error).__name__}: {error} ({place.name}, line {place.lineno}){hint}"


def _unwatched(classifier: Classifier, images: Images) -> Tensor:
    """Logits, by a pass that is the engine's own and not the attack's."""
    with classifier.counting(), classifier.watched_by(None):
        return classifier(images)


def _pack(
    classifier: Classifier, attack: Attack, data: ChunkData, places: np.ndarray, found: Found, conditions: Conditions
) -> PackedImages | None:
    """The images of the samples that were attacked and, where asked for, of those that are misclassified without attack.

    None where there are none; an invalid image is left out, unless a query of its sample is adversarial.
    """
    assert found.images is not None
    kind = np.where(found.best == found.outcome, "returned", "best").astype("U8")
    valid = np.flatnonzero((found.outcome != Outcome.INVALID) | (found.best == Outcome.BROKEN))
    attacked, places, adv_images, kind = places, places[valid], found.images[torch.from_numpy(valid)], kind[valid]
    if conditions.craft_all:
        others = np.setdiff1d(np.arange(len(data.images)), attacked)
        rest = replace(conditions, save=False, craft_all=False)
        extra, _, _ = _craft(classifier, Guard(classifier), attack, data, others, rest, ()) if len(others) else (None, {}, None)
        if extra is not None and isinstance(extra.returned, Tensor) and extra.returned.shape[1:] == adv_images.shape[1:]:
            finite = extra.returned.isfinite().flatten(1).all(1)
            others = others[finite.cpu().numpy()]
            adv_images = torch.cat([adv_images, extra.returned[finite].to(adv_images)])
            kind = np.append(kind, np.full(len(others), "returned"))
            order = np.argsort(np.append(places, others), kind="stable")
            places, adv_images, kind = np.append(places, others)[order], adv_images[torch.from_numpy(order)], kind[order]
    if not len(places):
        return None
    chosen = torch.from_numpy(places).to(data.images.device)

    def predict(images: Images) -> Tensor:
        return classifier(images.to(classifier.device)).argmax(1).cpu()

    return pack(data.images[chosen], adv_images, data.clean.index[places], kind, conditions.threat, predict)


def _with_images(
    classifier: Classifier, verdicts: ChunkVerdicts, images: Images, adv_images: Images, places: np.ndarray
) -> ChunkVerdicts:
    """The same verdicts with images of those of the chosen samples of a chunk that were attacked."""
    rows = np.flatnonzero(np.isin(places, _to_show(verdicts, SHOWN if images.shape[-1] <= LARGE else SHOWN_LARGE)))
    clean, adv = images[rows].float(), adv_images[rows].detach().float()
    return replace(
        verdicts,
        shown=verdicts.index[places[rows]],
        shown_clean=clean.cpu().numpy(),
        shown_adv=adv.cpu().numpy(),
        shown_confidence=np.stack([_confidence(classifier, clean), _confidence(classifier, adv)], 1),
    )


def _to_show(verdicts: ChunkVerdicts, count: int) -> np.ndarray:
    """Places of the first correctly classified sample of every class, then of the second, up to ``count``."""
    correct = np.flatnonzero(~np.isin(verdicts.outcome, (Outcome.MISCLASSIFIED, Outcome.INVALID)))
    labels, seen = verdicts.label[correct], np.zeros(len(correct), np.int64)
    for label in np.unique(labels):
        seen[labels == label] = np.arange((labels == label).sum())
    return np.sort(correct[np.argsort(seen, kind="stable")][:count])


@torch.no_grad()
def _confidence(classifier: Classifier, images: Images) -> np.ndarray:
    """Softmax of the predicted class, float32 (N,); NaN for a random model, of which one pass says nothing."""
    if classifier.draws > 1 or not len(images):
        return np.full(len(images), np.nan, np.float32)
    return _unwatched(classifier, images).softmax(1).amax(1).cpu().numpy()


@torch.no_grad()
def classify_chunk(classifier: Classifier, images: Images, labels: Labels, chunk: Chunk) -> ChunkVerdicts:
    """A chunk without attack.

    Raises:
        RobenchError: the model cannot classify it, or returns what is not finite.
    """
    started = time.perf_counter()
    try:
        with classifier.counting() as passes:
            logits = backing_off(classifier, len(images), lambda: classifier(images))
    except RobenchError:
        raise
    except Exception as error:  # somebody else's model may raise anything
        shape = tuple(images.shape)
        raise RobenchError(f"the model cannot classify images of shape {shape}: {type(error).__name__}: {error}") from error
    if not logits.isfinite().all():
        raise RobenchError(
            f"the model's logits are not finite on clean images {chunk.start} to {chunk.stop - 1}; nothing can be said about it"
        )
    if classifier.draws > 1:
        logits = verdict_logits(classifier, images, labels)
    predicted = logits.argmax(1).cpu().numpy()
    truth = labels.cpu().numpy()
    outcome = np.where(predicted == truth, Outcome.ROBUST, Outcome.MISCLASSIFIED).astype("U13")
    return ChunkVerdicts(
        np.arange(chunk.start, chunk.stop), truth, predicted, outcome, predicted, np.zeros(len(truth), np.float32),
        margins(logits, labels).cpu().numpy(), passes.forwards, passes.backwards, time.perf_counter() - started,
        describe_machine(classifier), peak_bytes=peak_bytes(classifier.device),
    )  # fmt: skip


def describe_machine(classifier: Classifier) -> str:
    """What the last bits of a result may depend on."""
    device = classifier.device
    bounded = f", at most {classifier.largest_pass} images a pass" if classifier.largest_pass else ""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}{bounded}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device.type}, {torch.get_num_threads()} threads, {capability}, torch {torch.__version__}{bounded}"
