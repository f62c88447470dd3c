"""The page of ``robench compare``."""

from __future__ import annotations

import pandas as pd

from robench.report.accuracy import UNION, accuracy_text, is_stage, title
from robench.report.compare import Comparison, Pair, attack_title, main_attacks, remarks
from robench.report.html import render_page
from robench.report.html.charts import Dot, scatter_chart
from robench.report.html.parts import ACCURACY, Cell, Heading, Table, accuracy_cells, count, listed
from robench.report.paired import p_text


def render_comparison(comparison: Comparison, links: dict[str, str]) -> str:
    """The whole page.

    Args:
        comparison: the comparison.
        links: from each model's name to its run folder, as seen from the page.
    """
    together = [pair for pair in comparison.pairs if pair.attack in main_attacks(comparison.shared)]
    rest = [pair for pair in comparison.pairs if pair.attack not in main_attacks(comparison.shared)]
    return render_page(
        "comparison.html",
        title=f"Comparison of {len(comparison.results)} models",
        comparison=comparison,
        remarks=remarks(comparison),
        models=_models(comparison, links),
        attacks=_attacks(comparison),
        chart=_chart(comparison),
        pairs=_pair_table("pairs", "Differences on the same samples, first model minus second", together) if together else None,
        other_pairs=_pair_table("other-pairs", "The same under each attack by itself", rest) if rest else None,
        shared=", ".join(map(title, comparison.shared)),
        alone=_alone(comparison),
    )


def _last(summary: pd.DataFrame) -> pd.Series:
    return summary.iloc[-1]


def _models(comparison: Comparison, links: dict[str, str]) -> Table:
    """Clean accuracy and the union of every model."""
    columns = (
        Heading("model", number=False), Heading("in the plot"), Heading("natural %"), *ACCURACY, Heading("n"),
        Heading("threat model", number=False), Heading("attacks"),
    )  # fmt: skip
    rows = []
    for place, (name, summary) in enumerate(comparison.summaries.items(), 1):
        threat = comparison.results[name].description["threat"]
        rows.append([
            Cell(name, href=f"{links[name]}/report.html"), count(place), Cell(accuracy_text(summary.iloc[0]), float(summary.iloc[0]["robust_high"])),
            *accuracy_cells(_last(summary)), count(_last(summary)["n"]), Cell(f"{threat['norm']} {threat['eps_text']}"),
            count(len(comparison.results[name].columns)),
        ])  # fmt: skip
    return Table("models", "Robust against every attack of its run (the union)", columns, rows)


def _attacks(comparison: Comparison) -> Table:
    """Models in rows, attacks in columns."""
    names = list(
        dict.fromkeys(name for summary in comparison.summaries.values() for name in summary["attack"] if not is_stage(name))
    )
    names = [name for name in names if name != UNION] + ([UNION] if UNION in names else [])
    rows = []
    for model, summary in comparison.summaries.items():
        by_attack = {row["attack"]: row for _, row in summary.iterrows()}
        cells = [
            Cell(accuracy_text(by_attack[name]), float(by_attack[name]["robust_high"]), shade=float(by_attack[name]["robust_high"]))
            if name in by_attack
            else Cell("", float("nan"))
            for name in names
        ]
        rows.append([Cell(model), *cells])
    columns = (Heading("model", number=False), *(Heading(title(name)) for name in names))
    return Table("side-by-side", "Robust accuracy in percent of all samples", columns, rows)


def _chart(comparison: Comparison) -> str:
    dots = []
    for name, summary in comparison.summaries.items():
        clean, last = summary.iloc[0], _last(summary)
        spans = [(100 * row["ci_low"], 100 * row["ci_high"]) for row in (clean, last)]
        dots.append(Dot(name, 100 * clean["robust_high"], 100 * last["robust_high"], *spans))
    context = [Dot(each.name, each.clean, each.robust) for each in comparison.published]
    description = "Robust against clean accuracy: " + "; ".join(
        f"{place} {dot.name} {dot.robust:.2f} % of {dot.clean:.2f} %" for place, dot in enumerate(dots, 1)
    )
    return scatter_chart(dots, context, description=description + (f"; with {len(context)} published entries" if context else ""))


def _pair_table(name: str, caption: str, pairs: list[Pair]) -> Table:
    columns: tuple[Heading, ...] = (
        Heading("first", number=False), Heading("second", number=False), Heading("under", number=False), Heading("points"), Heading("95 % interval"),
        Heading("first alone", about="samples that only the first model gets right"),
        Heading("second alone", about="samples that only the second model gets right"), Heading("p", about="exact McNemar test"),
        Heading("p, corrected", about="by Holm, over the pairs of this table"), Heading("n"),
    )  # fmt: skip
    left_out = any(pair.undecided for pair in pairs)
    if left_out:
        columns += (Heading("undecided", about="samples left out, since an attack failed on them or a model cannot classify them"),)
    rows = []
    for pair in pairs:
        test = pair.test
        interval = f"{100 * test.low:+.2f} to {100 * test.high:+.2f}"
        rows.append([
            Cell(pair.first), Cell(pair.second), Cell(attack_title(pair.attack)), Cell(f"{100 * test.difference:+.2f}", test.difference),
            Cell(interval, test.low), count(test.only_first), count(test.only_second), Cell(_bare(test.p), test.p),
            Cell(_bare(pair.p_corrected), pair.p_corrected), count(test.n), *([count(pair.undecided)] if left_out else []),
        ])  # fmt: skip
    return Table(name, caption, columns, rows)


def _bare(p: float) -> str:
    return p_text(p).removeprefix("p ").removeprefix("= ")


def _alone(comparison: Comparison) -> Table | None:
    """Which samples each attack alone breaks, of every model."""
    rows = [
        [Cell(model), Cell(title(attack)), count(len(places)), listed(places)]
        for model, by_attack in comparison.alone.items()
        for attack, places in by_attack.items()
        if places and len(by_attack) > 1
    ]
    columns = (
        Heading("model", number=False), Heading("attack", number=False), Heading("samples"),
        Heading("which, by their place in the data", number=False),
    )  # fmt: skip
    return Table("alone", "Samples that one attack alone breaks", columns, rows) if rows else None
