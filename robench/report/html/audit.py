"""audit.html, and the findings of an audit on the page of a run."""

from __future__ import annotations

from typing import Any

from robench.report.accuracy import percent
from robench.report.html.parts import Bar, Cell, Heading, Table
from robench.types import Level


def findings_context(content: dict[str, Any]) -> dict[str, Any]:
    """What a page shows of findings.json.

    Args:
        content: the file, as ``robench audit`` writes it.

    Raises:
        KeyError, TypeError, ValueError: it is another file.
    """
    verdict, findings = content["verdict"], content["findings"]
    grave = [each for each in findings if each["level"] in (Level.FAIL, Level.WARN)]
    counts = {level: sum(each["level"] == level for each in findings) for level in Level}
    return {
        "word": verdict["word"],
        "line": content.get("line") or _line(verdict),
        "why": verdict["why"],
        "steps": _steps(verdict),
        "grave": [each | {"honest": content.get("honest", {}).get(each["check"], "")} for each in grave],
        "checks": _checks(findings),
        "counts": ", ".join(f"{number} {level}" for level, number in counts.items() if number),
        "facts": [(name, str(text)) for name, text in content["about"].items() if name != "commands"],
        "commands": content["about"]["commands"],
        "verdict": verdict,
    }


def _line(verdict: dict[str, Any]) -> str:
    """The verdict in a sentence, of a file that has none."""
    claim = "" if verdict["claim"] is None else f": {percent(verdict['claim'])} % ({verdict['claimed']})"
    left = f"{percent(verdict['robust'] / verdict['n'])} % of {verdict['n']:,} samples survive every attack on the model itself"
    return f"{verdict['word'][0].upper()}{verdict['word'][1:]}{claim}. {left}."


def _steps(verdict: dict[str, Any]) -> Table:
    """What each step of the audit left, the judged number first."""
    rows = [] if verdict["claim"] is None else [_step(verdict["claimed"], verdict["claim"], None, "claim")]
    before: float | None = None
    for name, accuracy in verdict["took_away"]:
        rows.append(_step(name, accuracy, None if "stored" in name else before))
        before = before if "stored" in name else accuracy
    columns = (Heading("after", number=False), Heading("% robust"), Heading("change"), Heading("0 to 100 %"))
    return Table("steps-of-the-audit", "What each step took away", columns, rows, sortable=False)


def _step(name: str, accuracy: float, before: float | None, kind: str = "") -> list[Cell]:
    change = "" if before is None else f"{100 * (accuracy - before):+.2f}"
    bar = Bar(100 * accuracy, 100 * accuracy, 100 * accuracy)
    return [Cell(name, kind=kind), Cell(percent(accuracy)), Cell(change), Cell(f"{percent(accuracy)} %", bar=bar)]


def _checks(findings: list[dict[str, Any]]) -> Table:
    order = list(Level)
    rows = [
        [
            Cell(each["check"]), Cell(each["level"], order.index(each["level"]), kind=f"level {each['level']}"), Cell(each["says"]),
            Cell(each["evidence"]), Cell(each["source"]),
        ]
        for each in findings
    ]  # fmt: skip
    columns = tuple(Heading(name, number=False) for name in ("check", "level", "says", "evidence", "source"))
    return Table("checks", "Every check", columns, rows)
