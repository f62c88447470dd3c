"""One attack on one chunk: crafted under watch, judged by ourselves."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robench.evaluation.crafting import ChunkData, Conditions, Cost, Crafted, craft
from robench.evaluation.examples import with_examples
from robench.evaluation.guard import Guard
from robench.evaluation.judge import NOT_FINITE, answers, classes_of, margins
from robench.evaluation.memory import peak_bytes, retry_in_smaller_passes
from robench.evaluation.packed_images import PackedImages, pack
from robench.evaluation.run_folder import BLIND, LEFT_OUT, Chunk, ChunkVerdicts
from robench.evaluation.verdicts import AttackedVerdicts, judge_crafted, over_whole_chunk
from robench.models.classifier import Classifier
from robench.types import Attack, Outcome

if TYPE_CHECKING:
    from robench.types import Images, Labels

DECIDED = (Outcome.MISCLASSIFIED, Outcome.BROKEN, Outcome.SKIPPED)
NAMED = 5  # clean images that a message names


class AttackedChunk(NamedTuple):
    """An attack's verdicts on a chunk, and its images, None where they are not to be saved or there are none."""

    attack: Attack
    verdicts: ChunkVerdicts
    images: PackedImages | None


def attack_chunk(
    classifier: Classifier, guard: Guard, attack: Attack, data: ChunkData, *, before: np.ndarray, conditions: Conditions,
    prefixes: tuple[Attack, ...] = (),
) -> list[AttackedChunk]:  # fmt: skip
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
        The prefixes in their order, and the attack itself at the end.
    """
    everywhere = attack.external_images is not None or (attack.crafting_target is not None and attack.crafting_target.whole_chunks)
    places = np.arange(len(before)) if everywhere else np.flatnonzero(~np.isin(before, DECIDED))
    places = places[data.clean.clean_pred[places] >= 0]  # the others the model cannot classify even without attack
    crafted, snapshots, cost = craft(classifier, guard, attack, data, places=places, conditions=conditions, prefixes=prefixes)
    made = []
    for prefix in prefixes:
        short = snapshots.get(prefix.identity.steps or 0)
        if short is not None:
            made.append(
                (prefix, Crafted(short.queries, short.best, short.broken, short.broken_at), Cost(mode=f"prefix of {attack.name}"))
            )
        elif crafted.returned is None and len(places):  # the run that was to serve both failed before
            made.append((prefix, replace(crafted, ties=0), Cost(mode=f"prefix of {attack.name}")))
        else:  # an attack that asks the model nothing, as PGD at eps 0
            alone = craft(classifier, guard, prefix, data, places=places, conditions=conditions)
            made.append((prefix, alone.crafted, alone.cost))
    return [
        _conclude(classifier, each, data, before=before, places=places, crafted=result, conditions=conditions, cost=spent)
        for each, result, spent in [*made, (attack, crafted, cost)]
    ]


def _conclude(
    classifier: Classifier, attack: Attack, data: ChunkData, *, before: np.ndarray, places: np.ndarray, crafted: Crafted,
    conditions: Conditions, cost: Cost,
) -> AttackedChunk:  # fmt: skip
    """Judges what was crafted for the samples at ``places``, and packs the images."""
    chosen = torch.from_numpy(places).to(data.images.device)
    images, labels = data.images[chosen], data.labels[chosen]
    judged = judge_crafted(classifier, images, labels, crafted, conditions) if len(places) else AttackedVerdicts.nothing(images)
    machine, peak = describe_machine(classifier), peak_bytes(classifier.device)
    verdicts = over_whole_chunk(judged, data.clean, before=before, places=places, cost=cost, machine=machine, peak=peak)
    if judged.images is None:
        return AttackedChunk(attack, verdicts, None)
    packed = _pack(classifier, attack, data, places=places, judged=judged, conditions=conditions) if conditions.save else None
    if packed is not None:
        verdicts = replace(verdicts, adv_digest=packed.digest)
    if data.chunk.start == 0 and isinstance(crafted.returned, Tensor) and crafted.returned.shape == images.shape:
        verdicts = with_examples(classifier, verdicts, images, judged.images, places)
    return AttackedChunk(attack, verdicts, packed)


def leave_out(previous: ChunkVerdicts, why: str) -> ChunkVerdicts:
    """The verdicts of a stage that is left out: who was robust before it stays so, with the image of the stage before."""
    broken = previous.outcome == Outcome.BROKEN
    outcome = np.where(broken, Outcome.SKIPPED, previous.outcome).astype("U13")
    return ChunkVerdicts(
        index=previous.index, label=previous.label, clean_pred=previous.clean_pred, outcome=outcome,
        adv_pred=np.where(broken, -1, previous.adv_pred), distance=np.where(broken, np.nan, previous.distance).astype(np.float32),
        margin=np.where(broken, np.nan, previous.margin).astype(np.float32), forwards=0, backwards=0, seconds=0.0,
        machine=previous.machine, mode=f"{LEFT_OUT}: {why}",
    )  # fmt: skip


def pass_over_gradients(verdicts: ChunkVerdicts, previous: ChunkVerdicts) -> ChunkVerdicts:
    """The verdicts of a stage that the model passed no gradient to, which counts as left out: what it came across nevertheless, and
    for every other sample what was known before."""
    open_ = verdicts.undecided

    def kept(name: str) -> np.ndarray:
        return np.where(open_, getattr(previous, name), getattr(verdicts, name))

    return replace(
        verdicts, outcome=kept("outcome"), best=kept("best"), adv_pred=kept("adv_pred"), distance=kept("distance"), margin=kept("margin"),
        message=previous.message, mode=f"{LEFT_OUT}: {BLIND}",
    )  # fmt: skip


def _pack(
    classifier: Classifier, attack: Attack, data: ChunkData, *, places: np.ndarray, judged: AttackedVerdicts, conditions: Conditions
) -> PackedImages | None:
    """The images of the samples that were attacked and, where asked for, of those that are misclassified without attack.

    None where there are none; an invalid image is left out, and one that an attack which raised never made, unless a query of its sample
    is adversarial.
    """
    assert judged.images is not None
    kind = np.where(judged.best == judged.outcome, "returned", "best").astype("U8")
    made = (judged.outcome != Outcome.INVALID) & np.isfinite(judged.distance)
    valid = np.flatnonzero(made | (judged.best == Outcome.BROKEN))
    attacked, places, adv_images, kind = places, places[valid], judged.images[torch.from_numpy(valid)], kind[valid]
    if conditions.craft_all:
        others = np.setdiff1d(np.flatnonzero(data.clean.clean_pred >= 0), attacked)
        rest = replace(conditions, save=False, craft_all=False)
        extra = (
            craft(classifier, Guard(classifier), attack, data, places=others, conditions=rest).crafted.returned
            if len(others)
            else None
        )
        if isinstance(extra, Tensor) and extra.shape[1:] == adv_images.shape[1:]:
            finite = extra.isfinite().flatten(1).all(1)
            others = others[finite.cpu().numpy()]
            adv_images = torch.cat([adv_images, extra[finite].to(adv_images)])
            kind = np.append(kind, np.full(len(others), "returned"))
            order = np.argsort(np.append(places, others), kind="stable")
            places, adv_images, kind = np.append(places, others)[order], adv_images[torch.from_numpy(order)], kind[order]
    if not len(places):
        return None
    chosen = torch.from_numpy(places).to(data.images.device)

    @torch.no_grad()
    def predict(images: Images) -> Tensor:
        images = images.to(classifier.device)
        with classifier.counting():
            found = retry_in_smaller_passes(classifier, len(images), lambda: answers(classifier, images, data.labels[chosen]))
        return classes_of(found.logits).cpu()

    return pack(
        data.images[chosen], adv_images, index=data.clean.index[places], kind=kind, threat=conditions.threat, predict=predict
    )


@torch.no_grad()
def classify_chunk(classifier: Classifier, images: Images, labels: Labels, chunk: Chunk) -> ChunkVerdicts:
    """A chunk without attack. An image on which the model raises, or of which it says no class, is an error, and is not attacked."""
    started = time.perf_counter()
    with classifier.counting() as passes:
        logits, raised = retry_in_smaller_passes(classifier, len(images), lambda: answers(classifier, images, labels))
    predicted = classes_of(logits).cpu().numpy()
    truth = labels.cpu().numpy()
    outcome = np.where(predicted == truth, Outcome.ROBUST, Outcome.MISCLASSIFIED).astype("U13")
    outcome[predicted < 0] = Outcome.ERROR
    return ChunkVerdicts(
        index=np.arange(chunk.start, chunk.stop), label=truth, clean_pred=predicted, outcome=outcome, adv_pred=predicted,
        distance=np.zeros(len(truth), np.float32), margin=margins(logits, labels).cpu().numpy(), forwards=passes.forwards,
        backwards=passes.backwards, seconds=time.perf_counter() - started, machine=describe_machine(classifier),
        message=_unclassified(predicted, raised, chunk), peak_bytes=peak_bytes(classifier.device),
    )  # fmt: skip


def _unclassified(predicted: np.ndarray, raised: dict[int, str], chunk: Chunk) -> str:
    """Which clean images the model could not classify, and why, or ""."""
    places = np.flatnonzero(predicted < 0).tolist()
    if not places:
        return ""
    named = ", ".join(str(chunk.start + place) for place in places[:NAMED]) + (", ..." if len(places) > NAMED else "")
    why = [f"it raised {said}" for said in list(raised.values())[:1]] + ([NOT_FINITE] if len(raised) < len(places) else [])
    return f"the model cannot classify {len(places)} of {len(predicted)} clean images ({named}): {', or '.join(why)}"


def describe_machine(classifier: Classifier) -> str:
    """What the last bits of a result may depend on."""
    device = classifier.device
    bounded = f", at most {classifier.largest_pass} images a pass" if classifier.largest_pass else ""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}{bounded}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device.type}, {torch.get_num_threads()} threads, {capability}, torch {torch.__version__}{bounded}"
