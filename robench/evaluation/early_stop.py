"""Watches what an attack asks the model: an adversarial image seen once decides its sample, whatever the attack returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robench.evaluation.judge import classes_of, in_box, margins
from robench.models.classifier import Passes
from robench.types import ReturnPolicy, ThreatModel

if TYPE_CHECKING:
    from robench.types import Images, Labels, Logits

PROBES = 64  # pixels by which a query is matched to a sample, before the whole image is compared
LOOK_EVERY = (
    8  # queries after which the host asks a device whether the call may end; a call that may ends up to so many queries later
)


def queries_between_looks(device: torch.device) -> int:
    """How often the host looks at what the device knows: on a CPU, where that costs nothing and passes do, at every query."""
    return 1 if device.type == "cpu" else LOOK_EVERY


class AllDecided(BaseException):
    """Ends an attack's call from inside the model; no Exception, so that an attack which catches those cannot go on."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One query of every sample, and what the referee knew by then; see ``Referee``."""

    queries: Images
    best: Images
    broken: Tensor
    broken_at: Tensor


class Referee:
    """Keeps, for every sample of a call, the most wrongly classified of the images that the attack showed to the model.

    A query counts for a sample if it lies in that sample's ball and in the box and is misclassified as that sample. This is proof
    whichever sample the attack meant: matching queries to samples can miss some, but never decide falsely.

    Args:
        images, labels: what the attack was given.
        threat: the threat model.
        classify: logits of images, unwatched; what is to end the call is classified again first, in one batch.
        cut: which queries end the call with ``AllDecided`` once they decided every sample, see ``ReturnPolicy``; ``LAST`` for none.
        taps: numbers of queries to take a ``Snapshot`` of; the first query is 0.
        passes: what the call has cost so far.
        every: the host looks at the first so many queries, and then at every so-manieth, whether the call may end; between two looks
            it waits for nothing. With 1 it also leaves out what no query of a batch needs.

    Attributes:
        broken: whether a query broke the sample, bool (N,).
        broken_at: units (a forward pass 1, a backward pass 2) that the whole call had cost by then, float32 (N,); NaN for the others.
        best: the query of least margin among those, else the clean image.
    """

    def __init__(
        self, images: Images, labels: Labels, threat: ThreatModel, *, classify: Callable[[Images], Logits],
        cut: ReturnPolicy = ReturnPolicy.LAST, taps: Iterable[int] = (), passes: Passes | None = None,
        every: int = 1,
    ) -> None:  # fmt: skip
        self.images, self.labels, self.threat, self.cut, self.taps = images, labels, threat, cut, frozenset(taps)
        n = len(images)
        self.best = images.clone()
        self.broken = torch.zeros(n, dtype=torch.bool, device=images.device)
        self.broken_at = torch.full((n,), float("nan"), device=images.device)
        self.passes = passes or Passes()
        self.ties = 0
        self.snapshots: dict[int, Snapshot] = {}
        self._margin = torch.full((n,), float("inf"), device=images.device)
        self._decided = torch.zeros_like(self.broken)
        self._classify = classify
        self._queries = 0
        self._every = every
        self._places: Tensor | None = None
        size = images[0].numel()
        self._probes = torch.linspace(0, size - 1, min(PROBES, size), device=images.device).long()
        self._probed = images.flatten(1)[:, self._probes]

    def __call__(self, queries: Images, logits: Logits) -> None:
        """Looks at one batch of queries and its logits."""
        for_gradient, news = logits.requires_grad, False
        with torch.no_grad():
            if queries.shape[1:] == self.images.shape[1:]:
                news = self._note(queries.detach().float(), logits.detach().float(), for_gradient)
                if self._queries in self.taps and len(queries) == len(self.images):
                    self.snapshots[self._queries] = Snapshot(
                        queries.detach().clone(), self.best.clone(), self.broken.clone(), self.broken_at.clone()
                    )
            self._queries += 1
            looks = self._queries <= self._every or self._queries % self._every == 0
            if news and looks and self.cut != ReturnPolicy.LAST and bool(self._decided.all()):
                self._confirm()
                if bool(self._decided.all()):
                    raise AllDecided

    def _note(self, queries: Images, logits: Logits, for_gradient: bool) -> bool:
        """Whether some query may have broken its sample. Where the host looks at every query, those that are misclassified alone are
        measured, and it waits once; else all are, and it does not wait."""
        places = self._match(queries)
        labels = self.labels[places.clamp(min=0)]
        said = classes_of(logits)
        wrong = (said != labels) & (said >= 0) & (places >= 0)
        if self._every == 1:
            rows = wrong.nonzero().flatten()
            if not len(rows):
                return False
            queries, logits, places, labels, wrong = queries[rows], logits[rows], places[rows], labels[rows], wrong[rows]
        places = places.clamp(min=0)
        distance = self.threat.distance(self.images[places], queries)
        margin = margins(logits, labels)
        proof = wrong & (distance <= self.threat.eps + self.threat.tolerance) & in_box(queries) & margin.isfinite()
        self._decide(places, proof, distance, for_gradient)
        self._keep(queries, places, margin.masked_fill(~proof, float("inf")))
        return True

    def _keep(self, queries: Images, places: Tensor, margin: Tensor) -> None:
        """Keeps the queries that broke their samples, the most wrong of each.

        Args:
            margin: infinite for a query that broke none.
        """
        lowest = self._margin.scatter_reduce(0, places, margin, "amin")
        best = margin.isfinite() & (margin <= lowest[places]) & (margin < self._margin[places])
        row = torch.arange(len(queries), device=places.device).masked_fill(~best, -1)
        chosen = torch.full_like(self.labels, -1).scatter_reduce(0, places, row, "amax")
        self.best = torch.where((chosen >= 0)[:, None, None, None], queries[chosen.clamp(min=0)], self.best)
        self._margin = lowest
        spent = self.passes.forwards + 2 * self.passes.backwards
        broken = lowest.isfinite()
        self.broken_at = self.broken_at.masked_fill(broken & ~self.broken, spent)
        self.broken = broken

    def _decide(self, places: Tensor, proof: Tensor, distance: Tensor, for_gradient: bool) -> None:
        """Marks the samples for which the attack itself keeps such a query."""
        if self.cut == ReturnPolicy.FORWARD and not for_gradient:
            proof = proof & (distance <= self.threat.eps * self.threat.geometry.surely_inside)
        elif self.cut != ReturnPolicy.ANY:
            return
        self._decided = self._decided | (torch.zeros_like(self.labels).scatter_add(0, places, proof.long()) > 0)

    def _match(self, queries: Images) -> Tensor:
        """The sample that each query belongs to, int64 (M,), or -1.

        Libraries ask about all samples, in order, or about a subset that keeps its size for many queries: it is searched for when the
        size is new, or when not one of the queries is where it was.
        """
        if len(queries) == len(self.images):
            return torch.arange(len(queries), device=queries.device)
        probed = queries.flatten(1)[:, self._probes]
        if self._places is None or len(self._places) != len(queries):
            self._places = self._search(probed)
        elif self._every > 1:  # a search costs less than to wait for whether it is needed
            self._places = torch.where(self._near(probed, self._places).any(), self._places, self._search(probed))
        elif not self._near(probed, self._places).any():
            self._places = self._search(probed)
        return self._places

    def _near(self, probed: Tensor, places: Tensor) -> Tensor:
        apart = (probed - self._probed[places.clamp(min=0)]).abs()
        return self.threat.geometry.at_least(apart) <= self.threat.eps + self.threat.tolerance

    def _search(self, probed: Tensor) -> Tensor:
        places = self.threat.geometry.pairs_at_least(probed, self._probed).argmin(1)
        return torch.where(self._near(probed, places), places, -1)

    def _confirm(self) -> None:
        """Takes back what is no longer misclassified when all best images are classified again in one batch: a last-bit tie, or an image
        of which the model says no class there."""
        said = classes_of(self._classify(self.best))
        robust = ((said == self.labels) | (said < 0)) & self._decided
        self.ties += int(robust.sum())
        self.broken[robust] = self._decided[robust] = False
        self._margin[robust], self.broken_at[robust] = float("inf"), float("nan")
