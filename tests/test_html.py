"""Pages against the tables that they are made of, and in a real browser."""

import base64
import hashlib
import io
import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from cases import column, darken, fake
from click.testing import CliRunner
from pages import Page, in_browser, texts
from PIL import Image
from test_engine import OFFSETS, SPEC, run
from test_engine import raises as raising
from test_report import darken_half, nothing

from robench.cli import main
from robench.evaluation.examples import choose_examples
from robench.evaluation.results import Results, read_results
from robench.evaluation.run_folder import ChunkVerdicts
from robench.report import write_report
from robench.report.accuracy import percent, summarise
from robench.report.breakdown import broken_alone, superclass_errors
from robench.report.compare import ALL_SHARED, compare
from robench.report.curves import against_eps, against_steps
from robench.report.html.run import render_audit, render_run
from robench.report.leaderboard import collect
from robench.report.published import read_robustbench
from robench.report.several_runs import compare_runs, write_leaderboard
from robench.run.execute import _describe_data
from robench.types import Column, Outcome, RobenchError


def lighten(model, images, labels, threat, seed):
    return (images + threat.eps).clamp(0, 1)


def suites():
    return [
        column("nothing", nothing),
        column("half", darken_half),
        Column("both", (fake("half", darken_half), fake("full", darken)), is_cascade=True),
    ]


def rewrite(path, **changes):
    """Changes run.json; a nested value by ``data__classes``."""
    described = json.loads((path / "run.json").read_text())
    for name, value in changes.items():
        *above, last = name.split("__")
        place = described
        for each in above:
            place = place[each]
        place[last] = value
    (path / "run.json").write_text(json.dumps(described))


def written(path):
    """The run's page, written without the figures of report.md, which take seconds."""
    results = read_results(path)
    text = render_run(results, summarise(results))
    (path / "report.html").write_text(text)
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with two siblings at other radii, and all their reports."""
    below = tmp_path_factory.mktemp("runs")
    for name, eps in (("a", 0.1), ("b", 0.05), ("c", 0.28)):
        run(below / name, suites(), spec=replace(SPEC, eps=eps))
        rewrite(below / name, threat__eps_text=str(eps), data__coarse={"classes": ["tone"], "of_class": [0, 0]})
    for name in "bc":
        written(below / name)
    write_report(below / "a")
    return below


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "a" / "report.html").read_text())


@pytest.fixture(scope="module")
def others(folder, tmp_path_factory):
    """The texts of a comparison, a leaderboard and an audit's page."""
    out = tmp_path_factory.mktemp("out")
    compare_runs([folder / "a", folder / "b"], out / "comparison.html", anyway=True)
    write_leaderboard(folder, out / "leaderboard.html")
    return [(out / f"{name}.html").read_text() for name in ("comparison", "leaderboard")] + [
        render_audit(read_results(folder / "a"), FOUND)
    ]


FINDING = {"source": "somebody 2020", "calls_for": ["pgd50-bpda"], "evidence": "3 of <4>"}
FOUND = {
    "verdict": {"word": "refuted", "claim": 0.8, "claimed": "the claim", "robust": 4, "n": 10, "why": ["checks fail: steps"],
                "took_away": [["right without attack", 0.8], ["FGSM", 0.4]]},
    "findings": [{"check": "steps", "level": "fail", "says": "it rises", **FINDING}, {"check": "eps", "level": "pass", "says": "it falls", **FINDING}],
    "about": {"machine": "one", "commands": ["robench audit --claim 0.8"]},
}  # fmt: skip


def test_every_number_of_the_attack_table_is_the_one_of_summary_csv(folder, page):
    summary = pd.read_csv(folder / "a" / "summary.csv")
    rows = page.table("attacks")
    assert [row["attack"]["title"] for row in rows] == summary["attack"].tolist()
    for shown, (_, row) in zip(rows, summary.iterrows(), strict=True):
        assert shown["robust %"]["text"] == percent(row["robust_accuracy"])
        assert float(shown["robust %"]["data-value"]) == pytest.approx(row["robust_accuracy"], abs=1e-8)
        assert shown["95 % interval"]["text"] == f"{percent(row['ci_low'])} to {percent(row['ci_high'])}"
        assert (int(shown["broken"]["text"]), int(shown["by best query"]["text"])) == (row["broken"], row["best_broken"])
        assert shown["success %"]["text"] == percent(row["attack_success_rate"])
    ledger = page.table("ledger")
    assert texts(ledger, "forwards", "backwards") == [
        (f"{f:,}", f"{b:,}") for f, b in zip(summary["forwards"], summary["backwards"], strict=True)
    ]
    top = next(each for each in page.all("p") if each.get("class") == "number")
    assert top["text"].split() == [percent(summary.iloc[-1]["robust_accuracy"]), "%"]


def test_the_verdict_says_in_words_what_is_left(page):
    text = next(each for each in page.all("section") if each["id"] == "verdict")["text"]
    assert (
        "Of 10 test images the model gets 8 right. After all 3 attacks, in which every pixel value may move by at most 0.1" in text
    )
    assert "still gets 4 of them right" in text and "Neither AutoAttack nor fast is among the attacks" in text


def test_costs_are_given_in_autoattacks():
    from robench.report.accuracy import in_autoattacks

    assert in_autoattacks(11_672, 0, 1) == 1 and in_autoattacks(0, 11_672, 4) == 0.5
    assert np.isnan(in_autoattacks(1, 1, 0))


def pages_of(folder, others):
    return [(folder / "a" / "report.html").read_text(), *others]


def test_no_page_loads_anything_from_anywhere(folder, others):
    for text in pages_of(folder, others):
        page = Page(text)
        for element in page.elements:
            for name in {"src", "href", "srcset", "poster", "data", "action", "xlink:href"} & element.keys():
                assert element["tag"] == "a" or element[name].startswith("data:"), element
        style = page.all("style")[0]["text"]
        assert "url(" not in style and "@import" not in style
        script = page.all("script")
        assert len(script) == 1
        policy = next(each for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")["content"]
        digest = base64.b64encode(hashlib.sha256(script[0]["text"].encode()).digest()).decode()
        assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy


def test_pages_can_be_read_without_eyes_and_without_a_pointer(folder, others):
    for text in pages_of(folder, others):
        page = Page(text)
        assert [each["lang"] for each in page.all("html")] == ["en"]
        assert len(page.all("h1")) == 1
        levels = [int(each["tag"][1]) for each in page.all("h1", "h2", "h3", "h4")]
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        assert all(each.get("alt") for each in page.all("img")) and all(each.get("aria-label") for each in page.all("svg"))
        assert len(page.all("caption")) == len(page.all("table")) and all(each["text"].strip() for each in page.all("caption"))
        assert all(each.get("scope") in ("col", "row") for each in page.all("th"))
        names = [each["id"] for each in page.elements if "id" in each]
        assert len(names) == len(set(names))
        targets = [each["href"][1:] for each in page.all("a") if each["href"].startswith("#")]
        assert targets and set(targets) <= set(names)


def test_hostile_names_stay_text(folder, tmp_path):
    hostile = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    results = run(tmp_path / "run", suites())
    rewrite(results.path, model__name=hostile, data__classes=[hostile, "bright"], commands=[hostile], data__name=hostile)
    plain, page = Page((folder / "a" / "report.html").read_text()), Page(written(results.path))
    assert len(page.all("script")) == 1 and len(page.all("img")) == len(plain.all("img"))
    assert not [each for each in page.elements if "onerror" in each]
    assert page.all("h1")[0]["text"] == hostile and page.table("classes")[0]["class"]["text"] == hostile
    compare_runs([results.path], tmp_path / "c.html")
    write_leaderboard(tmp_path, tmp_path / "l.html")
    for name in "cl":
        assert len(Page((tmp_path / f"{name}.html").read_text()).all("script", "img")) == 1


def test_a_failed_attack_is_given_as_bounds_on_top(tmp_path):
    results = run(tmp_path, [column("bad", raising), column("darken", darken)])
    page = Page(written(results.path))
    top = next(each for each in page.all("p") if each.get("class") == "number")
    assert top["text"].split() == ["0.00", "to", "40.00", "%"]
    said = next(each for each in page.all("section") if each["id"] == "verdict")["text"]
    assert (
        "still gets at least 0 of them right. On 4 more an attack failed" in re.sub(r"\s+", " ", said)
        and "ValueError: out of ideas" in said
    )


def test_the_gallery_holds_the_very_pixels_and_the_models_confidence(folder, page):
    cards = [each for each in page.all("figure") if each.get("class") == "card"]
    assert [card["data-attack"] for card in cards] == ["nothing"] * 3 + ["half"] * 3 + ["both"] * 3
    examples = read_results(folder / "a").examples["half"]
    assert examples.index.tolist() == [1, 2, 3]
    pictures = [Image.open(io.BytesIO(base64.b64decode(each["src"].partition(",")[2]))) for each in page.all("img")]
    clean, adv, delta = (
        np.asarray(each)[0, 0, 0] for each in pictures[9 + 3 : 9 + 6]
    )  # sample 2, of offset 0.2, under "half" at 0.1
    assert (clean, adv, delta) == (round(255 * 0.7), round(255 * 0.65), 0)
    assert cards[4]["text"].count("×\xa010") + cards[4]["text"].count("× 10") == 1
    before, after = (1 / (1 + np.exp(-2 * offset)) for offset in (0.2, 0.15))
    assert examples.confidence[1].tolist() == pytest.approx([before, after], abs=1e-6)
    assert f"bright {100 * before:.0f} %" in cards[4]["text"] and f"bright {100 * after:.0f} %" in cards[4]["text"]


def test_the_gallery_begins_with_one_sample_of_each_class():
    label = np.array([0, 0, 0, 1, 1, 2, 0, 1])
    outcome = np.array(["robust"] * 5 + ["broken", "robust", "misclassified"], "U13")
    numbers = np.zeros(8)
    verdicts = ChunkVerdicts(
        index=np.arange(8), label=label, clean_pred=label, outcome=outcome, adv_pred=label, distance=numbers, margin=numbers,
        forwards=0, backwards=0, seconds=0.0, machine="",
    )  # fmt: skip
    assert choose_examples(verdicts, 3).tolist() == [0, 3, 5]
    assert choose_examples(verdicts, 5).tolist() == [0, 1, 3, 4, 5]


def test_the_curve_against_eps_joins_siblings_and_begins_with_the_clean_accuracy(folder, page):
    results = read_results(folder / "a")
    curves = {curve.name: curve for curve in against_eps(results, summarise(results))}
    assert [(point.x_text, point.accuracy) for point in curves["half"].points] == [
        ("0", 0.8),
        ("0.05", 0.7),
        ("0.1", 0.6),
        ("0.28", 0.4),
    ]
    assert [point.accuracy for point in curves["union"].points] == [0.8, 0.6, 0.4, 0.1]
    assert texts(page.table("against-eps"), "attack", "robust %")[:4] == [("nothing", "80.00")] * 4
    assert len(page.all("svg")) == 1


def test_the_curve_against_cost_ends_where_the_table_does(tmp_path):
    def asks(model, images, labels, threat, seed):
        model(darken(model, images, labels, threat, seed))
        return images

    page = Page(written(run(tmp_path, [Column("asks", (fake("asks", asks),), is_cascade=True), column("nothing", nothing)]).path))
    (svg,) = page.all("svg")
    assert svg["aria-label"] == "Robust accuracy against cost: asks ends at 40.00 % after 1 units a sample"  # 8 of 10 queried once
    said = next(each for each in page.all("section") if each["id"] == "costs")["text"]
    assert "as much again would break about" in said and texts(page.table("attacks"), "attack", "robust %")[-1] == (
        "union",
        "40.00",
    )


def test_a_run_of_another_model_or_an_unfinished_one_is_no_sibling(tmp_path):
    results = run(tmp_path / "a", suites())
    run(tmp_path / "b", suites(), spec=replace(SPEC, eps=0.05, model="other"))
    unfinished = run(tmp_path / "c", suites(), spec=replace(SPEC, eps=0.2))
    next((unfinished.path / "chunks" / "clean").iterdir()).unlink()
    assert against_eps(results, summarise(results)) == []


def test_the_curve_against_steps_joins_attacks_that_differ_in_their_steps_alone(tmp_path):
    attacks = [
        column(name, darken, {"steps": steps}) for name, steps in (("pgd7", 7), ("pgd20", 20), ("pgd5-margin", 5), ("other3", 9))
    ]
    results = run(tmp_path, attacks)
    described = results.description["suites"]
    for suite, attack in zip(described, attacks, strict=True):
        suite["members"][0]["params"] = dict(attack.stages[0].params)
    (curve,) = against_steps(results, summarise(results))
    assert curve.name == "PGD" and [(point.x, point.accuracy) for point in curve.points] == [(7, 0.4), (20, 0.4)]


def hand_made(path, broken, coarse=None):
    """Results of ten samples of class 0 to 4 twice; ``broken``: attack to {index: answer}."""
    rows = [("clean", k, k % 5, k % 5, "robust", k % 5, "robust") for k in range(10)]
    for name, answers in broken.items():
        said = [("broken" if k in answers else "robust") for k in range(10)]
        rows += [(name, k, k % 5, k % 5, said[k], answers.get(k, k % 5), said[k]) for k in range(10)]
    verdicts = pd.DataFrame(rows, columns=["attack", "index", "label", "clean_pred", "outcome", "adv_pred", "best"])
    data = {"classes": list("abcde"), **({"coarse": coarse} if coarse else {})}
    return Results(
        path=path, description={"data": data}, verdicts=verdicts, ledger=pd.DataFrame(), columns=list(broken),
        stages={name: [] for name in broken}, unfinished=[], examples={},
    )  # fmt: skip


def test_errors_land_within_or_across_the_superclass(tmp_path):
    coarse = {"classes": ["x", "y"], "of_class": [0, 0, 1, 1, 1]}
    answers = {0: 1, 5: 2, 2: 3, 3: 4, 4: 0}  # a seen as b, a as c, c as d, d as e, e as a: three within
    (found,) = superclass_errors(hand_made(tmp_path, {"pgd": answers}, coarse))
    assert (found.attack, found.errors, found.within) == ("pgd", 5, 3)
    assert found.chance == pytest.approx((1 + 1 + 2 + 2 + 2) / 5 / 4)
    assert superclass_errors(hand_made(tmp_path, {"pgd": answers})) == []


def test_samples_that_one_attack_alone_breaks(tmp_path):
    assert broken_alone(hand_made(tmp_path, {"one": {1: 0, 2: 0}, "two": {2: 0, 7: 0, 8: 0}})) == {"one": [1], "two": [7, 8]}


def test_a_run_names_the_superclass_of_every_class_where_it_has_one(digits_test):
    described = _describe_data(digits_test)["coarse"]
    assert described == {"classes": ["straight", "loops", "open curves"], "of_class": [1, 0, 2, 2, 0, 2, 1, 0, 1, 1]}
    torn = replace(digits_test, coarse_labels=digits_test.labels.flip(0) % 3)
    assert "coarse" not in _describe_data(torn)


def test_the_audit_is_on_its_own_page_and_on_that_of_its_run(tmp_path, others):
    page = Page(others[2])
    assert "The number 80.00 % is" in page.all("h2")[0]["text"]
    assert texts(page.table("steps-of-the-audit"), "after", "% robust", "change") == [
        ("the claim", "80.00", ""),
        ("right without attack", "80.00", ""),
        ("FGSM", "40.00", "-40.00"),
    ]
    assert texts(page.table("checks"), "check", "level", "evidence") == [("steps", "fail", "3 of <4>"), ("eps", "pass", "3 of <4>")]
    (grave,) = page.all("article")
    assert "It rises." in grave["text"] and "pgd50-bpda" in grave["text"]
    results = run(tmp_path / "run", suites())
    (tmp_path / "findings.json").write_text(json.dumps(FOUND))
    assert "Refuted: 80.00 % (the claim). 40.00 % of 10 samples survive" in written(results.path)
    (tmp_path / "findings.json").write_text("[]")
    assert "What the audit found" not in written(results.path)


@pytest.fixture
def three(tmp_path):
    """Runs of three models on the same data: one that loses 4 of 8 samples, one 2, one that is on other data."""
    run(tmp_path / "a", [column("x", darken), column("y", darken_half)])
    run(tmp_path / "b", [column("x", darken_half), column("y", nothing)])
    run(tmp_path / "c", [column("x", darken_half)], offsets=OFFSETS[:5], spec=replace(SPEC, data="other"))
    for name in "abc":
        rewrite(tmp_path / name, model__name=name)
    return [tmp_path / name for name in "abc"]


def test_two_models_are_tested_on_the_same_samples(three):
    found = compare(three[:2])
    tests = {pair.attack: pair for pair in found.pairs}
    assert list(tests) == ["clean", ALL_SHARED, "x", "y"]
    assert (tests["x"].test.only_first, tests["x"].test.only_second, tests["x"].test.difference) == (0, 2, -0.2)
    assert tests["x"].test.p == 0.5 and tests["x"].p_corrected == 1.0
    assert found.alone == {"a": {"x": [3, 6], "y": []}, "b": {"x": [1, 8], "y": []}}


def test_other_data_is_refused_unless_told_and_then_said(three, tmp_path):
    with pytest.raises(RobenchError, match="different things .* `anyway`"):
        compare_runs(three)
    text = compare_runs(three, tmp_path / "c.html", anyway=True)
    page = Page((tmp_path / "c.html").read_text())
    said = page.all("aside")[0]["text"]
    assert (
        "cannot be compared number by number" in said
        and "the data: gray (data), gray (other)" in said
        and "the number of samples: 10, 5" in said
    )
    assert "cannot be compared number by number" in text
    assert "pairs" not in page.tables  # no sample of one is a sample of the other
    assert texts(page.table("models"), "model", "robust %", "n") == [
        ("a", "40.00", "10"),
        ("b", "60.00", "10"),
        ("c", "60.00", "5"),
    ]
    with pytest.raises(RobenchError, match=r"ends in \.html"):
        compare_runs(three[:2], tmp_path / "c.txt")


def test_the_numbers_of_a_comparison_are_those_of_its_runs(three, tmp_path):
    compare_runs(three[:2], tmp_path / "c.html")
    page = Page((tmp_path / "c.html").read_text())
    assert texts(page.table("side-by-side"), "model", "natural", "x", "y", "union") == [
        ("a", "80.00", "40.00", "60.00", "40.00"),
        ("b", "80.00", "60.00", "80.00", "60.00"),
    ]
    assert not page.all("aside")
    links = [each["href"] for each in page.all("a") if "report" in each["href"]]
    assert links == ["a/report.html", "b/report.html"]


def test_published_entries_are_read_tolerantly(tmp_path):
    below = tmp_path / "model_info" / "cifar10" / "Linf"
    below.mkdir(parents=True)
    (tmp_path / "model_info" / "cifar10" / "L2").mkdir()

    def entry(stem, folder="Linf", **content):
        (tmp_path / "model_info" / "cifar10" / folder / f"{stem}.json").write_text(json.dumps(content))

    entry("A", clean_acc="89.69", autoattack_acc="59.53", eps="8/255", dataset="cifar10", name="Title")
    entry("B", clean_acc="90.1%", autoattack_acc=61.2, external="60.65", eps="0.031", dataset="cifar10")
    entry("C", clean_acc="95", autoattack_acc="40", eps="4/255", dataset="cifar10")  # another radius
    entry("D", clean_acc="95", autoattack_acc="", dataset="cifar10")  # no robust accuracy
    entry("E", folder="L2", clean_acc="95", autoattack_acc="80", dataset="cifar10")
    entry("F", clean_acc="76", autoattack_acc="30", dataset="cifar100", eps="8/255")
    (below / "G.json").write_text("{")
    (below / "H.json").write_text("[1]")
    found = read_robustbench(tmp_path, "cifar10", "Linf", 8 / 255)
    assert [(each.name, each.clean, each.robust) for each in found] == [("A (Title)", 89.69, 59.53)]
    entry("B", clean_acc="90.1%", autoattack_acc=61.2, external="60.65", eps="8/255", dataset="cifar10")
    assert [each.robust for each in read_robustbench(tmp_path, "cifar10", "Linf", 8 / 255)] == [60.65, 59.53]
    assert read_robustbench(tmp_path, "digits", "Linf", 0.2) == []
    with pytest.raises(RobenchError, match="no entries of RobustBench"):
        read_robustbench(tmp_path / "nowhere", "cifar10", "Linf", 8 / 255)


def test_published_entries_stand_behind_the_models_of_the_plot(three, tmp_path):
    info = tmp_path / "gray" / "Linf"
    info.mkdir(parents=True)
    (info / "Somebody.json").write_text(json.dumps({"clean_acc": "90", "autoattack_acc": "50", "eps": "0.1"}))
    compare_runs(three[:2], tmp_path / "c.html", robustbench=tmp_path / "gray")
    page = Page((tmp_path / "c.html").read_text())
    dots = [each.get("class") for each in page.all("circle")]
    assert dots.count("context") == 1 and len(dots) == 3
    assert "Somebody: 90.00 % clean, 50.00 % robust" in [each["text"] for each in page.all("title")]


def test_a_leaderboard_groups_runs_and_lists_what_it_cannot_read(folder, tmp_path):
    run(tmp_path / "deep" / "good", suites())
    run(tmp_path / "weak", [column("nothing", nothing)])
    run(tmp_path / "other", suites(), spec=replace(SPEC, eps=0.3))
    rewrite(tmp_path / "other", threat__eps_text="0.3")
    stopped = run(tmp_path / "stopped", suites())
    next((stopped.path / "chunks" / "clean").iterdir()).unlink()
    for name, content in (
        ("cut", "{"),
        ("list", "[]"),
        ("bare", '{"schema": 1}'),
        ("null", '{"schema": 1, "n": null, "spec": {"chunk": 4}}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    results = [row | {"robust_accuracy": None} for row in summarise(run(tmp_path / "k", suites())).to_dict("records")]
    rewrite(tmp_path / "k", results=[row | {"robust_accuracy": row["robust_low"]} for row in results])
    for file in (tmp_path / "k" / "chunks").rglob("*.npz"):
        file.unlink()
    for place in sorted((tmp_path / "k" / "chunks").rglob("*"), reverse=True):
        place.rmdir()
    (tmp_path / "k" / "chunks").rmdir()
    found = collect(tmp_path)
    assert {what: [entry.path.name for entry in entries] for what, entries in found.groups.items()} == {
        "gray, Linf 0.1 (data data)": ["weak", "good", "k"], "gray, Linf 0.3 (data data)": ["other"],
    }  # fmt: skip
    assert [path.name for path, _ in found.unread] == ["bare", "cut", "list", "null", "stopped"]
    write_leaderboard(tmp_path, tmp_path / "all.html")
    page = Page((tmp_path / "all.html").read_text())
    assert texts(page.table("runs-0"), "robust %", "note") == [("80.00", ""), ("40.00", ""), ("40.00", "verdicts not kept")]
    assert "no finished results yet" in next(each for each in page.all("section") if each["id"] == "unread")["text"]
    with pytest.raises(RobenchError, match="holds no run"):
        collect(tmp_path / "nowhere")


def test_the_runs_of_an_audit_at_other_radii_are_not_on_the_leaderboard(tmp_path):
    for name in ("run", "run-x2"):
        run(tmp_path / "audit" / name, suites())
    (tmp_path / "audit" / "findings.json").write_text("{}")
    assert [entry.path.name for entries in collect(tmp_path).groups.values() for entry in entries] == ["run"]


def test_commands_print_where_the_page_is(three, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(main, [str(each) for each in arguments])

    assert call("report", three[0]).stdout.splitlines()[-2] == str(three[0] / "report.html")
    done = call("compare", *three[:2], "--out", tmp_path / "c.html")
    assert done.exit_code == 0 and done.stdout.splitlines()[-1] == str(tmp_path / "c.html")
    assert call("compare", *three).exit_code == 1 and call("compare", *three, "--anyway").exit_code == 0
    done = call("leaderboard", tmp_path, "--out", tmp_path / "all.html")
    assert done.exit_code == 0 and done.stdout.splitlines()[-1] == str(tmp_path / "all.html")


LOOK = """
const column = (table, k) => [...table.tBodies[0].rows].map(row => row.cells[k].textContent.trim());
const isRobust = head => head.textContent.includes("robust %");
const table = [...document.querySelectorAll("table[data-sortable]")].find(each => [...each.tHead.rows[0].cells].some(isRobust));
const heads = [...table.tHead.rows[0].cells], place = heads.findIndex(isRobust);
const head = heads[place], said = {wide: document.documentElement.scrollWidth - document.documentElement.clientWidth, before: column(table, place)};
head.querySelector("button").click();
said.first = [head.getAttribute("aria-sort"), column(table, place)];
head.querySelector("button").click();
said.second = [head.getAttribute("aria-sort"), column(table, place)];
heads[0].querySelector("button").click();
said.words = [heads[0].getAttribute("aria-sort"), head.getAttribute("aria-sort"), column(table, 0)];
const form = document.querySelector("form.filters");
if (form) {
  const shown = () => [...document.querySelectorAll(".card")].filter(card => card.offsetParent !== null).map(card => card.dataset.attack + " " + card.dataset.outcome);
  const choose = (name, value) => { form.elements[name].value = value; form.elements[name].dispatchEvent(new Event("change", {bubbles: true})); };
  said.cards = {start: shown()};
  choose("attack", ""); said.cards.all = shown().length;
  choose("attack", "half"); said.cards.half = shown();
  choose("outcome", "broken"); said.cards.broken = shown();
  choose("label", "bright"); said.cards.bright = shown().length;
  said.cards.output = form.querySelector("output").textContent;
  said.cards.labels = [...form.querySelectorAll("select")].every(menu => menu.labels.length === 1);
}
document.querySelectorAll("details").forEach(each => { each.open = true; });
said.unfolded = document.documentElement.scrollWidth - document.documentElement.clientWidth;
return said;
"""


def test_pages_sort_filter_and_fit_a_phone_in_a_browser(folder, others, tmp_path):
    report, comparison, leaderboard, audit = in_browser(tmp_path, pages_of(folder, others), LOOK)
    for said in (report, comparison, leaderboard, audit):
        assert said["wide"] == said["unfolded"] == 0
        numbers = [float(text) for text in said["before"]]
        assert said["first"] == ["descending", [f"{value:.2f}" for value in sorted(numbers, reverse=True)]]
        assert said["second"] == ["ascending", [f"{value:.2f}" for value in sorted(numbers)]]
        assert said["words"][:2] == ["ascending", None] and said["words"][2] == sorted(said["words"][2])
    cards = report["cards"]
    assert len(report["before"]) == 7 and set(cards["start"]) == {"both broken", "both robust"} and len(cards["start"]) == 3
    assert cards["all"] == 9 and set(cards["half"]) == {"half broken", "half robust"}
    assert set(cards["broken"]) == {"half broken"} and cards["bright"] == len(cards["broken"]) and cards["labels"]
    assert re.fullmatch(r"\d of 9 shown", cards["output"])


def test_outcomes_of_cards_are_those_of_the_verdicts(folder, page):
    verdicts = read_results(folder / "a").verdicts.set_index(["attack", "index"])
    for card in (each for each in page.all("figure") if each.get("class") == "card"):
        index = int(re.search(r"sample (\d+)", card["text"])[1])
        assert card["data-outcome"] == verdicts.loc[(card["data-attack"], index), "outcome"]
        assert ("broken" in card["text"]) == (card["data-outcome"] == Outcome.BROKEN)
