"""Tables against numbers worked out by hand; figures and pages against what they must contain."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from test_engine import OFFSETS, SPEC, column, darken, fake, run
from test_engine import raises as raising

from robench.evaluation.results import decide
from robench.report import write_report
from robench.report.accuracy import interval, is_stage, per_class, shortfall, summarise, title
from robench.report.leaderboard import collect, leaderboard_text
from robench.report.several_runs import compare_runs
from robench.types import Column, Outcome, RobenchError


def nothing(model, images, labels, threat, seed):
    return images


def darken_half(model, images, labels, threat, seed):
    return (images - threat.eps / 2).clamp(0, 1)


@pytest.fixture
def results(tmp_path):
    cascade = Column("both", (fake("half", darken_half), fake("full", darken)), is_cascade=True)
    return run(tmp_path / "run", [column("nothing", nothing), column("half", darken_half), cascade])


def wilson_by_hand(k, n, z=1.959963984540054):
    share = k / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return center - spread, center + spread


def test_interval_is_wilsons_and_exact_at_the_ends():
    assert interval(50, 100) == pytest.approx(wilson_by_hand(50, 100))
    assert interval(3, 1000) == pytest.approx(wilson_by_hand(3, 1000))
    assert interval(0, 100) == pytest.approx((0, 1 - 0.025 ** (1 / 100)))
    assert interval(100, 100) == pytest.approx((0.025 ** (1 / 100), 1))


def test_summary_rows_are_clean_attacks_stages_union_with_the_numbers_known_by_hand(results):
    # 2 of 10 misclassified; half the radius breaks 0.02 and 0.04; the whole one 0.06 and 0.08 as well.
    summary = summarise(results)
    assert list(summary["attack"]) == ["clean", "nothing", "half", "both", "both/half", "both/full", "union"]
    assert list(summary.columns[:9]) == [
        *("attack", "n", "robust_accuracy", "ci_low", "ci_high", "broken", "forwards", "backwards", "seconds")
    ]  # fmt: skip
    rows = summary.set_index("attack")
    assert rows["robust_accuracy"].tolist() == [0.8, 0.8, 0.6, 0.4, 0.6, 0.4, 0.4]
    assert rows["broken"].tolist() == [2, 0, 2, 4, 2, 2, 4]
    assert (rows["n"] == 10).all() and (rows["undecided"] == 0).all()
    assert rows.loc["both", "attack_success_rate"] == 0.5
    assert rows.loc["half", ["ci_low", "ci_high"]].tolist() == pytest.approx(wilson_by_hand(6, 10))


def test_verdicts_csv_alone_gives_every_accuracy_again(results):
    summary = write_report(results.path)
    verdicts = pd.read_csv(results.path / "verdicts.csv")
    assert list(verdicts.columns[:7]) == ["attack", "index", "label", "clean_pred", "outcome", "adv_pred", "distance"]
    by_attack = verdicts.groupby("attack")["outcome"].agg(lambda outcomes: (outcomes == "robust").mean())
    for name in ("nothing", "half", "both"):
        assert by_attack[name] == summary.set_index("attack").loc[name, "robust_accuracy"]
    wide = verdicts[verdicts["attack"].isin(["nothing", "half", "both"])].pivot(index="index", columns="attack", values="outcome")
    assert (wide == "robust").all(axis=1).mean() == summary.set_index("attack").loc["union", "robust_accuracy"]
    assert verdicts[verdicts["outcome"] == "skipped"]["adv_pred"].isna().all()


def test_the_union_takes_the_worst_and_leaves_open_what_a_failed_attack_left_open():
    def frame(*outcomes):
        return pd.DataFrame({"attack": "x", "index": range(len(outcomes)), "outcome": outcomes, "best": outcomes[::-1]})

    b, r, s, e, i, m = (getattr(Outcome, name) for name in ("BROKEN", "ROBUST", "SKIPPED", "ERROR", "INVALID", "MISCLASSIFIED"))
    together = decide([frame(b, r, r, e, r, i, m, b), frame(r, b, r, r, i, b, m, s)], "union")
    assert together["outcome"].tolist() == [b, b, r, e, i, b, m, b]
    assert together["best"].tolist() == [b, m, b, i, e, r, b, b]  # decided by itself
    assert together["index"].tolist() == list(range(8)) and set(together["attack"]) == {"union"}


def test_per_class_shares(results):
    shares = per_class(results, ["clean", "half"])
    assert shares.loc[1].tolist() == [0.8, 0.6]
    assert shares.loc[0].isna().all()  # no sample of that class


def test_report_holds_what_a_reader_needs(results):
    write_report(results.path)
    text = (results.path / "report.md").read_text()
    for part in (
        "Linf, eps 0.1",
        "n = 10",
        "| model | natural |",
        "| both/full | 40.00 |",
        "95 % interval",
        "upper bound",
        "| union | 40.00 |",
    ):
        assert part in text
    for figure in ("robust_accuracy", "examples", "per_class"):
        assert (results.path / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert f"figures/{figure}.png" in text
    assert "Partial" not in text and "failed" not in text


def test_report_again_gives_the_same_bytes(results):
    write_report(results.path)
    files = ("summary.csv", "verdicts.csv", "report.md")
    first = [(results.path / name).read_bytes() for name in files]
    write_report(results.path)
    assert [(results.path / name).read_bytes() for name in files] == first


def test_summary_is_golden(results):
    summary = summarise(results).drop(columns=["seconds", "seconds_per_sample"])
    text = summary.to_csv(index=False, lineterminator="\n", float_format="%.4f")
    assert text.splitlines()[3] == "half,10,0.6000,0.3127,0.8318,2,0,0,2,0,0.6000,0.6000,0.2500,2,0.0000,0.0000,"


def test_a_failed_attack_is_given_as_bounds_in_the_paper_layout(tmp_path):
    results = run(tmp_path, [column("bad", raising), column("darken", darken)], spec=SPEC)
    write_report(results.path)
    text = (results.path / "report.md").read_text()
    assert "| 0.00 to 80.00 |" in text and "ValueError: out of ideas" in text
    assert np.isnan(summarise(results).set_index("attack").loc["union", "robust_accuracy"])


def test_success_rate_of_a_stage_is_over_the_samples_that_it_was_given(results):
    rows = summarise(results).set_index("attack")
    assert rows.loc["both/half", "attack_success_rate"] == 2 / 8
    assert rows.loc["both/full", "attack_success_rate"] == 2 / 6


def test_a_step_size_in_a_columns_name_is_no_stage(results, tmp_path):
    assert [is_stage(name) for name in ("pgd20(step=1/255)", "pgd20@a/b", "autoattack/apgd-ce", "fast(budget=1)/nearest")] == [
        False, False, True, True,
    ]  # fmt: skip
    stepped = run(tmp_path / "stepped", [column("pgd2(step=1/255)", darken_half)])
    text = compare_runs([results.path, stepped.path])
    assert "PGD-2(step=1/255)" in text.splitlines()[4]
    assert "pgd2(step=1/255)" in shortfall(summarise(stepped), 1.0)
    assert collect(stepped.path).groups.popitem()[1][0].attacks == ["pgd2(step=1/255)"]


def test_a_run_without_a_finished_attack_is_no_leader_and_is_named_in_a_comparison(results, tmp_path):
    begun = run(tmp_path / "begun", [column("half", darken_half)])
    (next((begun.path / "chunks").glob("half-*/*.npz"))).unlink()
    (entries,) = collect(tmp_path).groups.values()
    assert [entry.path.name for entry in entries] == [results.path.name, "begun"]
    assert entries[1].note == "unfinished: half"
    assert re.search(
        r"^\| brightness \| 80.00 \|  \| 10 \|  \| unfinished: half \|$", leaderboard_text(collect(tmp_path)), re.MULTILINE
    )
    said = compare_runs([results.path, begun.path])
    assert f"Unfinished, and not shown: {begun.path}, half." in said
    assert "No attack is shared by all runs" in said


def test_one_attack_breaks_nothing_alone(tmp_path):
    one, two = (run(tmp_path / name, [column("half", darken_half)]) for name in "ab")
    assert "Samples that one attack alone breaks" not in compare_runs([one.path, two.path])


def test_titles_are_the_fields():
    assert [title(name) for name in ("fgsm", "pgd20", "autoattack", "clean")] == ["FGSM", "PGD-20", "AutoAttack", "natural"]


def test_columns_that_were_not_computed_alike_are_named(results, tmp_path):
    other = run(tmp_path / "other", [column("half", darken_half)])
    assert "Not computed alike" not in compare_runs([results.path, other.path], tmp_path / "both.md")
    described = json.loads((other.path / "run.json").read_text())
    described["suites"][0]["members"][0]["library"] = "tests, a later version"
    (other.path / "run.json").write_text(json.dumps(described))
    said = "Not computed alike in all runs, by other versions of the attack or with other parameters: half"
    assert said in compare_runs([results.path, other.path], tmp_path / "both.md")
    compare_runs([results.path, other.path], tmp_path / "both.html")
    assert said in (tmp_path / "both.html").read_text()


def test_comparison_has_a_row_a_model_and_refuses_other_data(results, tmp_path):
    other = run(tmp_path / "other", [column("half", darken_half)])
    text = compare_runs([results.path, other.path], tmp_path / "both.md")
    assert f"| {other.path} | 80.00 |  | 60.00 |  | 60.00 |" in text
    assert "(run/report.md)" in (tmp_path / "both.md").read_text()
    elsewhere = run(tmp_path / "elsewhere", [column("half", darken_half)], offsets=OFFSETS[:5])
    with pytest.raises(RobenchError, match="cannot stand in one table"):
        compare_runs([results.path, elsewhere.path])
