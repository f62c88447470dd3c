"""The page of ``robench compare``."""

from __future__ import annotations

import pandas as pd

from robench.report.compare import Comparison, Pair, attack_title, main_attacks, remarks
from robench.report.html import render_page
from robench.report.html.charts import Dot, scatter_chart
from robench.report.html.parts import ACCURACY, Cell, Column, Table, accuracy_cells, count, listed
from robench.report.paired import p_text
from robench.report.tables import UNION, accuracy_text, is_stage, title


def render_comparison(found: Comparison, links: dict[str, str]) -> str:
    """The whole page.

    Args:
        found: the comparison.
        links: from each model's name to its run folder, as seen from the page.
    """
    together = [pair for pair in found.pairs if pair.attack in main_attacks(found.shared)]
    rest = [pair for pair in found.pairs if pair.attack not in main_attacks(found.shared)]
    return render_page(
        "comparison.html",
        title=f"Comparison of {len(found.results)} models",
        found=found,
        remarks=remarks(found),
        models=_models(found, links),
        attacks=_attacks(found),
        chart=_chart(found),
        pairs=_pair_table("pairs", "Differences on the same samples, first model minus second", together) if together else None,
        other_pairs=_pair_table("other-pairs", "The same under each attack by itself", rest) if rest else None,
        shared=", ".join(map(title, found.shared)),
        alone=_alone(found),
    )


def _last(summary: pd.DataFrame) -> pd.Series:
    return summary.iloc[-1]


def _models(found: Comparison, links: dict[str, str]) -> Table:
    """Clean accuracy and the union of every model."""
    columns = (
        Column("model", number=False), Column("in the plot"), Column("natural %"), *ACCURACY, Column("n"),
        Column("threat model", number=False), Column("attacks"),
    )  # fmt: skip
    rows = []
    for place, (name, summary) in enumerate(found.summaries.items(), 1):
        threat = found.results[name].description["threat"]
        rows.append([
            Cell(name, href=f"{links[name]}/report.html"), count(place), Cell(accuracy_text(summary.iloc[0]), float(summary.iloc[0]["robust_high"])),
            *accuracy_cells(_last(summary)), count(_last(summary)["n"]), Cell(f"{threat['norm']} {threat['eps_text']}"),
            count(len(found.results[name].columns)),
        ])  # fmt: skip
    return Table("models", "Robust against every attack of its run (the union)", columns, rows)


def _attacks(found: Comparison) -> Table:
    """Models in rows, attacks in columns."""
    names = list(dict.fromkeys(name for summary in found.summaries.values() for name in summary["attack"] if not is_stage(name)))
    names = [name for name in names if name != UNION] + ([UNION] if UNION in names else [])
    rows = []
    for model, summary in found.summaries.items():
        by_attack = {row["attack"]: row for _, row in summary.iterrows()}
        cells = [
            Cell(accuracy_text(by_attack[name]), float(by_attack[name]["robust_high"]), shade=float(by_attack[name]["robust_high"]))
            if name in by_attack
            else Cell("", float("nan"))
            for name in names
        ]
        rows.append([Cell(model), *cells])
    columns = (Column("model", number=False), *(Column(title(name)) for name in names))
    return Table("side-by-side", "Robust accuracy in percent of all samples", columns, rows)


def _chart(found: Comparison) -> str:
    dots = []
    for name, summary in found.summaries.items():
        clean, last = summary.iloc[0], _last(summary)
        spans = [(100 * row["ci_low"], 100 * row["ci_high"]) for row in (clean, last)]
        dots.append(Dot(name, 100 * clean["robust_high"], 100 * last["robust_high"], *spans))
    context = [Dot(each.name, each.clean, each.robust) for each in found.published]
    said = "Robust against clean accuracy: " + "; ".join(
        f"{place} {dot.name} {dot.robust:.2f} % of {dot.clean:.2f} %" for place, dot in enumerate(dots, 1)
    )
    return scatter_chart(dots, context, said=said + (f"; with {len(context)} published entries" if context else ""))


def _pair_table(name: str, caption: str, pairs: list[Pair]) -> Table:
    columns: tuple[Column, ...] = (
        Column("first", number=False), Column("second", number=False), Column("under", number=False), Column("points"), Column("95 % interval"),
        Column("first alone", about="samples that only the first model gets right"),
        Column("second alone", about="samples that only the second model gets right"), Column("p", about="exact McNemar test"),
        Column("p, corrected", about="by Holm, over the pairs of this table"), Column("n"),
    )  # fmt: skip
    left_out = any(pair.undecided for pair in pairs)
    if left_out:
        columns += (Column("undecided", about="samples left out, since an attack failed on them or a model cannot classify them"),)
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


def _alone(found: Comparison) -> Table | None:
    """Which samples each attack alone breaks, of every model."""
    rows = [
        [Cell(model), Cell(title(attack)), count(len(places)), listed(places)]
        for model, by_attack in found.alone.items()
        for attack, places in by_attack.items()
        if places and len(by_attack) > 1
    ]
    columns = (
        Column("model", number=False), Column("attack", number=False), Column("samples"),
        Column("which, by their place in the data", number=False),
    )  # fmt: skip
    return Table("alone", "Samples that one attack alone breaks", columns, rows) if rows else None
