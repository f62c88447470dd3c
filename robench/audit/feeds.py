"""Which checks an experiment feeds, and what a probe costs: so that a check without its experiment can say why."""

from __future__ import annotations

from collections.abc import Iterable

from robench.audit.comparisons import TRANSFER

FEEDS_OF_COLUMN = {
    "fgsm": ("one-step",),
    "pgd1": ("one-step",),
    "pgd7": ("steps",),
    "pgd20": ("one-step", "steps", "eps", "restarts", "silent-success", "transfer-gap", "budget", "noise", "black-box", "sibling"),
    "pgd50": ("steps", "more-steps", "silent-success"),
    "pgd100": ("steps", "more-steps"),
    "pgd50-ce": ("loss-swap", "rescaling", "float64"),
    "pgd50-margin": ("loss-swap",),
    "pgd50-dlr": ("loss-swap",),
    "pgd50-rescaled": ("rescaling",),
    "pgd50-float64": ("float64",),
    "pgd50-eot": ("randomness",),
    "pgd20(restarts=5)": ("restarts",),
    "noise": ("noise",),
}
FEEDS_OF_RADIUS = {
    "half": ("eps", "eps-zero"),
    "x2": ("eps", "eps-zero"),
    "x4": ("eps", "eps-zero"),
    "large": ("eps", "eps-zero", "large-eps"),
    "unbounded": ("eps", "eps-zero", "unbounded"),
}
FEEDS_OF_PROBE = {
    "repeats": ("randomness",),
    "state": ("train-mode",),
    "batch": ("batch-dependence",),
    "outputs": ("softmax-outputs",),
    "gradients": ("zero-gradients", "saturation"),
    "input stage": ("input-stage",),
    "differences": ("finite-differences",),
    "secants": ("secants",),
    "jumps": ("continuity",),
    "neighbourhood": ("unstable",),
    "trajectory": ("incomplete",),
    "sign-agreement": (),
}
# Of the whole panel, a sample, by the upper bound; True: of the quick audit. The other radii and the probes are in it.
PANEL_UNITS = {True: 1_250.0, False: 2_500.0}
VERDICTS = 10  # of every sample in the panel: a random model pays all its votes for each
# Of a sample: a forward pass 1, a backward pass 2, in float64 four times that.
PROBE_UNITS = {
    "repeats": 5,
    "state": 1,
    "batch": 2,
    "outputs": 1,
    "gradients": 6,
    "input stage": 4,
    "differences": 140,
    "secants": 50,
    "jumps": 180,
    "neighbourhood": 21,
    "trajectory": 150,
    "sign-agreement": 24,
}


def feeds_of(columns: Iterable[str]) -> tuple[str, ...]:
    """The checks that read one of the columns."""
    names = [
        check for column in columns for check in FEEDS_OF_COLUMN.get(column, ("sibling",) if column.startswith(TRANSFER) else ())
    ]
    return tuple(dict.fromkeys(names))
