"""Why models keep what they keep of the stored images: what the verdicts and the mechanism's numbers can tell, and what they cannot."""

from __future__ import annotations

from collections.abc import Iterator

from robench.report.accuracy import percent, title
from robench.report.markdown import table
from robench.report.paired import paired
from robench.reproduce.measured import Measured
from robench.reproduce.plan import ATTACKS, SAME_SIZE

ASKED = "pgd20"  # the attack whose stored images are compared


def why(models: list[Measured]) -> Iterator[str]:
    """Sections in markdown: what is kept, step by step from one training to another, by direction, and by size alone.

    Args:
        models: the finished models of one data set.
    """
    evaluated = [
        measured
        for measured in models
        if measured.has_stored and not measured.model.is_source and measured.model.adversarial == "none"
    ]
    explained = [measured for measured in evaluated if measured.about["mechanism"]]
    if not explained:
        return
    yield _kept(evaluated)
    if steps := _steps(evaluated):
        yield steps
    yield _directions(explained)
    sized = [measured for measured in explained if "same size" in measured.about["mechanism"]]
    if sized:
        yield _same_size(sized)


def _kept(evaluated: list[Measured]) -> str:
    """What a model keeps, also of the images alone that it gets right without attack."""
    lines = []
    for measured in evaluated:
        clean, stored = measured.correct("clean"), measured.correct(ASKED, stored=True)
        lines.append(
            [
                measured.model.title, percent(clean.mean()), percent(stored.mean()),
                percent(stored[clean].mean()) if clean.any() else "", percent(stored[~clean].mean()) if (~clean).any() else "",
            ]
        )  # fmt: skip
    header = ["model", "natural", "right on stored images", "of those right without attack", "of those wrong without attack"]
    return (
        f"What each model says of the stored {title(ASKED)} images, in percent. Natural accuracy does not decide it where the fourth column "
        f"differs as the third does:\n\n{table(header, lines)}"
    )


def _steps(evaluated: list[Measured]) -> str:
    """Differences between models that differ in one thing each, on the same images."""
    first = {(measured.model.role, measured.model.arch, measured.model.seed): measured for measured in evaluated}
    plain, views = first.get(("second seed", "single", 1)), first.get(("views", "single", 0))
    contrastive, other = first.get(("paper", "contrastive", 0)), first.get(("paper", "contrastive", 1))
    pairs = [
        ("SimCLR's views in place of crops and flips, without a second head", views, plain),
        ("the contrastive head and its loss, on those views", contrastive, views),
        ("both together", contrastive, plain),
        ("both together, neither with the attacked model's seed", other, plain),
        ("another seed than the attacked model's", other, contrastive),
    ]
    told = [(name, one, two) for name, one, two in pairs if one is not None and two is not None]
    if len(told) < 2:
        return ""
    lines = []
    for name, one, two in told:
        stored = paired(one.correct(ASKED, stored=True), two.correct(ASKED, stored=True))
        clean = paired(one.correct("clean"), two.correct("clean"))
        lines.append(
            [
                name, f"{one.model.title} - {two.model.title}", f"{100 * stored.difference:+.2f}",
                f"{100 * stored.low:.2f} to {100 * stored.high:.2f}", f"{100 * clean.difference:+.2f}",
            ]
        )  # fmt: skip
    header = ["what changes", "models", "points on stored images", "95 % interval", "points of natural accuracy"]
    return (
        f"Step by step, paired on the same {title(ASKED)} images:\n\n{table(header, lines)}\n\n"
        "A model with the attacked model's seed shares its backbone's first weights and its order of images; the plain model cannot have that "
        "seed, since it would be the attacked model. So the first and the third row change the seed too, in the direction that the last row "
        "measures where it is there. These are differences between single trainings: they say which part of the training carries the number, "
        "and not by which features of the images."
    )


def _directions(explained: list[Measured]) -> str:
    lines = []
    for measured in explained:
        mechanism = measured.about["mechanism"]
        for attack in sorted(ATTACKS, key=mechanism["l2"].get):
            lines.append(
                [
                    measured.model.title, title(attack), f"{mechanism['l2'][attack]:.3f}",
                    f"{mechanism['sign agreement'][attack]:.3f}", percent(measured.accuracy(attack, stored=True)),
                ]
            )  # fmt: skip
        lines[-len(ATTACKS)][0] = f"**{measured.model.title}**"
    header = ["model", "stored attack", "mean L2 size", "sign agreement (chance 0.5)", "accuracy on stored images, %"]
    n = explained[0].about["mechanism"]["n"]
    said = f"Size and sign agreement on the first {n} test images, smallest perturbation first."
    if len(explained) > 2:
        said += " " + _order(explained)
    return f"Directions: how often the stored perturbation has the sign of the model's own gradient.\n\n{table(header, lines)}\n\n{said}"


def _order(explained: list[Measured]) -> str:
    """Whether sign agreement puts models into the order of what they keep."""
    from scipy.stats import spearmanr

    agreement = [measured.about["mechanism"]["sign agreement"][ASKED] for measured in explained]
    kept = [measured.accuracy(ASKED, stored=True) for measured in explained]
    rank = float(spearmanr(agreement, kept).statistic)
    return (
        f"Over these {len(explained)} models, Spearman's rank correlation of sign agreement and accuracy ({title(ASKED)}) is {rank:+.2f} "
        "(-1: who agrees more keeps less, without exception). So few models show a tendency, no law."
    )


def _same_size(sized: list[Measured]) -> str:
    """Accuracy on changes as large as the stored ones that know nothing of any model."""
    lines = [
        [measured.model.title, *(percent(measured.about["mechanism"]["same size"][kind]) for kind in SAME_SIZE)]
        for measured in sized
    ]
    header = ["model", "no change", "noise", "blur", "stored, pixels shuffled", "stored for another image", "stored (PGD-50)"]
    n = sized[0].about["mechanism"]["n"]
    low = min(measured.about["mechanism"]["same size"][kind] for measured in sized for kind in SAME_SIZE[1:-1])
    return (
        f"Size: accuracy in percent on the first {n} test images, each changed by as much (L2) as its stored PGD-50 image:\n\n{table(header, lines)}\n\n"
        f"Changes of that size that know nothing of the single-task model leave {percent(low)} % or more. What a model loses beyond that on the "
        "stored images, it loses to directions that it shares with the single-task model."
    )
