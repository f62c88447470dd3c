"""Several runs side by side: their tables, paired tests on the same samples, and which samples each attack alone breaks."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from robench.evaluation.results import Results, read_results
from robench.evaluation.run_folder import CLEAN
from robench.report.accuracy import summarise, title
from robench.report.breakdown import broken_alone
from robench.report.markdown import layout_table, table
from robench.report.paired import Paired, holm, p_text, paired
from robench.report.published import Published, read_robustbench
from robench.types import Outcome, RobenchError

ALL_SHARED = "all shared attacks"


@dataclass(frozen=True)
class Pair:
    """Two models under one attack, on the samples that both runs have.

    Attributes:
        first, second: names of the models.
        attack: a column that every run has, "clean", or ``ALL_SHARED``: robust against each of these columns, whatever they came across.
        test: accuracies' difference and the exact McNemar test, on the samples that both models decide.
        undecided: samples that are left out, since an attack failed on them or one of the models cannot classify them.
        p_corrected: by Holm; over the pairs under no attack and all shared ones, or over those under single attacks.
    """

    first: str
    second: str
    attack: str
    test: Paired
    undecided: int
    p_corrected: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """Runs side by side.

    Attributes:
        results, summaries: by the model's name, or the folder's where names are not unique.
        differences: what the runs differ in, so that their numbers cannot be compared; empty where they can.
        unlike: shared columns that were not computed by the same code with the same parameters.
        about: data, samples and threat model, one text a kind.
        shared: columns that every run has.
        pairs: empty where the runs are about different data.
        alone: model to attack to the samples that it alone breaks.
        published: RobustBench's entries, where they were asked for.
    """

    results: dict[str, Results]
    summaries: dict[str, pd.DataFrame]
    differences: list[str]
    unlike: list[str]
    about: list[str]
    shared: list[str]
    pairs: list[Pair]
    alone: dict[str, dict[str, list[int]]]
    published: list[Published]


def compare(runs: list[Path], *, anyway: bool = False, robustbench: Path | None = None) -> Comparison:
    """Reads runs, and whatever can be said of them together.

    Args:
        runs: run folders.
        anyway: also where they are about different data, samples or threat models.
        robustbench: see ``read_robustbench``.

    Raises:
        RobenchError: the runs differ in data, number of samples or threat model, so that a table of them would mislead.
    """
    read = list({run.resolve(): read_results(run) for run in runs}.values())
    kinds = {_what(each.description): each.path for each in read}
    if len(kinds) > 1 and not anyway:
        listed = "; ".join(f"{path}: {what}" for what, path in kinds.items())
        raise RobenchError(
            f"these runs are about different things and cannot stand in one table: {listed}. Told with `anyway`, robench puts them there, and says so"
        )
    names = [each.description["model"]["name"] for each in read]
    results = dict(zip(names if len(set(names)) == len(names) else [str(each.path) for each in read], read, strict=True))
    shared = [name for name in read[0].columns if all(name in each.columns for each in read)]
    threat = read[0].description["threat"]
    published = (
        []
        if robustbench is None
        else read_robustbench(robustbench, read[0].description["data"]["name"], threat["norm"], threat["eps"])
    )
    return Comparison(
        results=results,
        summaries={name: summarise(each) for name, each in results.items()},
        differences=_differences(read),
        unlike=_unlike(read, shared),
        about=list(kinds),
        shared=shared,
        pairs=_pairs(results, shared),
        alone={name: broken_alone(each) if len(each.columns) > 1 else {} for name, each in results.items()},
        published=published,
    )


def _pairs(results: dict[str, Results], shared: list[str]) -> list[Pair]:
    """Every two models under every shared attack; none where a sample of one run is not the same sample of another."""
    if len({each.description["spec"]["data"] for each in results.values()}) > 1:
        return []
    first_family = main_attacks(shared)
    families = [first_family, [name for name in shared if name not in first_family]]
    return [pair for attacks in families for pair in _family(results, shared, attacks)]


def main_attacks(shared: list[str]) -> list[str]:
    """What models are compared under first: no attack, and all that every run has."""
    return [CLEAN, *(shared if len(shared) < 2 else [ALL_SHARED])]


def _family(results: dict[str, Results], shared: list[str], attacks: list[str]) -> list[Pair]:
    """Pairs whose p-values are corrected together."""
    tested = [
        (first, second, attack, _decided(_said(results[first], attack, shared), _said(results[second], attack, shared)))
        for first, second in itertools.combinations(results, 2)
        for attack in attacks
    ]
    corrected = holm([decided.test.p for *_, decided in tested])
    return [
        Pair(first, second, attack, test=decided.test, undecided=decided.undecided, p_corrected=p)
        for (first, second, attack, decided), p in zip(tested, corrected, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Said:
    """Which samples survive, and which are decided at all, bool (n,) each."""

    robust: np.ndarray
    decided: np.ndarray


class Decided(NamedTuple):
    """The test on the samples that both runs decide, and how many others there are among those that both have."""

    test: Paired
    undecided: int


def _decided(first: _Said, second: _Said) -> Decided:
    """Compares two models on what is known of both."""
    n = min(len(first.robust), len(second.robust))  # the first n of the test split are the same in both
    known = first.decided[:n] & second.decided[:n]
    return Decided(paired(first.robust[:n][known], second.robust[:n][known]), int((~known).sum()))


def _said(results: Results, attack: str, shared: list[str]) -> _Said:
    """What became of every sample under one attack, or under all shared ones by what they came across: what one of them breaks is
    broken, also where another failed."""
    which, names = ("best", shared) if attack == ALL_SHARED else ("outcome", [attack])
    rows = results.verdicts[results.verdicts["attack"].isin(names)]
    robust = (rows[which] == Outcome.ROBUST).groupby(rows["index"]).all().sort_index().to_numpy()
    lost = (~rows[which].isin((Outcome.ROBUST, *Outcome.UNDECIDED))).groupby(rows["index"]).any().sort_index().to_numpy()
    return _Said(robust, robust | lost)


def _differences(read: list[Results]) -> list[str]:
    """What keeps the numbers of several runs from being about the same thing, a sentence each."""
    described = [each.description for each in read]
    kinds = {
        "the data": {f"{each['data']['name']} ({each['spec']['data'][:8]})" for each in described},
        "the number of samples": {f"{each['n']:,}" for each in described},
        "the threat model": {f"{each['threat']['norm']} {each['threat']['eps_text']}" for each in described},
    }
    return [f"{what}: {', '.join(sorted(values))}" for what, values in kinds.items() if len(values) > 1]


def _unlike(read: list[Results], shared: list[str]) -> list[str]:
    """The shared columns whose attacks have other parameters or other versions of their library in some run."""

    def made(results: Results, column: str) -> str:
        (described,) = (described for described in results.description["suites"] if described["name"] == column)
        return json.dumps([[stage["name"], stage["library"], stage["params"]] for stage in described["members"]], sort_keys=True)

    return [column for column in shared if len({made(results, column) for results in read}) > 1]


def remarks(comparison: Comparison) -> list[str]:
    """What a reader of the table has to know, a sentence each: what is unfinished, not shared, or not computed alike."""
    sentences = [
        f"Unfinished, and not shown: {name}, {', '.join(each.unfinished)}."
        for name, each in comparison.results.items()
        if each.unfinished
    ]
    if comparison.pairs and not comparison.shared:
        sentences.append("No attack is shared by all runs, so that only their natural accuracy is tested in pairs.")
    if any(pair.undecided for pair in comparison.pairs):
        sentences.append(
            "Samples that are undecided in one of two runs, since an attack failed on them or the model cannot classify them, are left out of "
            "their paired test; the tables of pairs count them."
        )
    if comparison.unlike:
        sentences.append(
            f"Not computed alike in all runs, by other versions of the attack or with other parameters: {', '.join(map(title, comparison.unlike))}; "
            "each run's report names them."
        )
    return sentences


def comparison_text(comparison: Comparison) -> str:
    """The comparison as markdown, without a heading."""
    parts = ["; ".join(comparison.about) + "; percent of all samples"]
    if comparison.differences:
        parts.append(f"**These runs cannot be compared number by number.** They differ in {'; '.join(comparison.differences)}.")
    parts += [f"**{each}**" for each in remarks(comparison)]
    parts.append(layout_table(comparison.summaries))
    best = [pair for pair in comparison.pairs if pair.attack in main_attacks(comparison.shared)]
    if best:
        left_out = any(pair.undecided for pair in comparison.pairs)
        rows = [
            [f"{pair.first} - {pair.second}", attack_title(pair.attack), f"{100 * pair.test.difference:+.2f}", f"{100 * pair.test.low:+.2f} to {100 * pair.test.high:+.2f}",
             str(pair.test.only_first), str(pair.test.only_second), p_text(pair.p_corrected), *([str(pair.undecided)] if left_out else [])]
            for pair in best
        ]  # fmt: skip
        header = ["models", "under", "points", "95 % interval", "first alone", "second alone", "exact McNemar, Holm"]
        header += ["undecided"] if left_out else []
        parts.append("Paired, on the same samples:\n\n" + table(header, rows))
    alone = [
        [name, title(attack), str(len(places))] for name, by in comparison.alone.items() for attack, places in by.items() if places
    ]
    if alone:
        parts.append("Samples that one attack alone breaks:\n\n" + table(["model", "attack", "samples"], alone))
    return "\n\n".join(parts) + "\n"


def attack_title(attack: str) -> str:
    """As ``title``, of what a pair is compared under."""
    return attack if attack == ALL_SHARED else title(attack)


def _what(description: dict[str, Any]) -> str:
    threat, data = description["threat"], description["data"]
    spec = description["spec"]
    part = f" of {data['n']}" if description["n"] < data["n"] else ""
    return f"{data['name']} (digest {spec['data'][:8]}), n = {description['n']}{part}, {threat['norm']} {threat['eps_text']}"


def relative(path: Path, out: Path) -> str:
    """The way from a file to a folder, as links need it."""
    return Path(os.path.relpath(path.resolve(), out.parent.resolve())).as_posix()
