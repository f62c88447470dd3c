"""Reports on photographs, on a thousand classes and on tens of thousands of samples."""

import base64
import io
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from fabricated import Shape, fabricate
from pages import Page, in_browser, texts
from PIL import Image

from robench.cli.group import print_run
from robench.evaluation.examples import how_many
from robench.evaluation.results import read_results
from robench.report.accuracy import interval, percent, summarise
from robench.report.breakdown import class_shares, confusions, worst_classes
from robench.report.compare import compare
from robench.report.figures import draw_all
from robench.report.html import gallery
from robench.report.html.run import render_audit, render_run
from robench.report.markdown import render
from robench.report.metadata import short

pytestmark = pytest.mark.slow  # a minute together; `make test-all` and CI run them

CLASSES = 120  # more than a page shows one by one
HOW = "short side to 256 (bicubic), then the centre 224 x 224, as timm's pretrained_cfg says"
WHERE = f"{HOW}; the threat model acts on pixels in [0, 1] after it and before normalisation"
DATA = (("n", 50_000), ("preprocessing", HOW))
ALL = Shape(n=600, classes=CLASSES, side=224, shown=2, chunk=300, cascade=True, data=DATA)


def page_of(results):
    return render_run(results, summarise(results))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return read_results(fabricate(tmp_path_factory.mktemp("photographs") / "run", ALL))


@pytest.fixture(scope="module")
def text(results):
    return page_of(results)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def survivors(results):
    """Of every class how many samples it has, and how many no query of any attack broke, counted one by one."""
    labels, best = {}, {}
    for attack, index, label, said in results.verdicts[["attack", "index", "label", "best"]].itertuples(index=False):
        if attack in results.columns:
            labels[index] = label
            best.setdefault(index, set()).add(said)
    return Counter(labels.values()), Counter(labels[index] for index, said in best.items() if said == {"robust"})


def test_every_class_has_the_share_that_counting_gives_and_the_worst_are_those_with_the_lowest_upper_end(results):
    samples, robust = survivors(results)
    shares = class_shares(results)
    assert shares["samples"].tolist() == [samples[label] for label in range(CLASSES)]
    highs = {}
    for label, row in shares.iterrows():
        if samples[label]:
            low, highs[label] = interval(robust[label], samples[label])
            assert row["union"] == robust[label] / samples[label] and (row["ci_low"], row["ci_high"]) == (low, highs[label])
    assert worst_classes(shares)["label"].tolist() == sorted(highs, key=lambda label: (highs[label], label))[:10]


def test_a_class_without_samples_has_no_share_and_is_not_among_the_worst(tmp_path):
    few = read_results(fabricate(tmp_path / "few", Shape(n=12, classes=CLASSES)))
    shares = class_shares(few)
    assert shares["samples"].sum() == 12 and shares[shares["samples"] == 0]["ci_high"].isna().all()
    assert (worst_classes(shares)["samples"] > 0).all()


def test_an_attack_may_have_the_name_of_a_column_of_the_table(tmp_path):
    odd = read_results(fabricate(tmp_path / "odd", Shape(n=50, attacks=("label", "samples"))))
    assert list(class_shares(odd).columns[3:]) == ["clean", "label (attack)", "samples (attack)", "union", "ci_low", "ci_high"]


def test_confusions_are_the_most_frequent_answers_to_images_that_broke(results):
    rows = results.verdicts[results.verdicts["attack"].isin(results.columns) & (results.verdicts["outcome"] == "broken")]
    decided = {
        row[0]: row[1:] for row in rows[["index", "label", "adv_pred"]].itertuples(index=False)
    }  # by the last attack that breaks it
    expected = sorted((-count, *pair) for pair, count in Counter(decided.values()).items())[:10]
    assert [(-samples, label, answer) for label, answer, samples in confusions(results).itertuples(index=False)] == expected


def test_a_page_shows_the_worst_ten_classes_and_folds_the_others_away(results, page):
    worst, all_of_them = page.table("worst-classes"), page.table("classes")
    shares = worst_classes(class_shares(results))
    assert texts(worst, "union", "95 % interval") == [
        (f"{100 * row['union']:.0f}", f"{percent(row['ci_low'])} to {percent(row['ci_high'])}") for _, row in shares.iterrows()
    ]
    assert len(all_of_them) == CLASSES and texts(all_of_them, "class", "union")[:10] == texts(worst, "class", "union")
    assert all(
        row["class"]["title"].startswith(row["class"]["text"].rstrip("…")) and "(label " in row["class"]["title"] for row in worst
    )
    assert max(len(row["class"]["text"]) for row in all_of_them) <= 40
    (folded,) = (each for each in page.all("details") if each.get("class") == "long")
    assert folded["text"].strip().startswith(f"All {CLASSES} classes") and "open" not in folded
    assert len(page.table("confusions")) == 10


def test_a_hundred_classes_are_shown_one_by_one_as_before(tmp_path):
    fewer = read_results(fabricate(tmp_path / "run", Shape(n=200, classes=100)))
    page = Page(page_of(fewer))
    assert len(page.table("classes")) == 100 and not {"worst-classes", "confusions"} & page.tables.keys() and not page.all("input")
    assert "The worst" not in render(fewer, summarise(fewer), []) and "per_class" in draw_all(fewer, summarise(fewer))


def test_markdown_has_the_worst_ten_and_names_the_file_with_all(results):
    summary = summarise(results)
    figures = draw_all(results, summary)
    assert "per_class" not in figures  # with so many classes nothing of it is legible
    said = render(results, summary, list(figures))
    _, _, section = said.partition(f"## The worst of {CLASSES} classes\n\n")
    header, _, *rows = section.partition("\n\n")[0].splitlines()
    assert header == "| class | label | union % | 95 % interval | samples | natural | FGSM | PGD-20 | AutoAttack |"
    assert [int(row.split(" | ")[1]) for row in rows] == worst_classes(class_shares(results))["label"].tolist()
    assert "All classes are in `classes.csv`." in section


def test_names_are_cut_where_they_are_long():
    assert short("American alligator") == "American alligator" and short("a" * 40) == "a" * 40
    assert short("African hunting dog, hyena dog, Cape hunting dog", 21) == "African hunting dog…"


def pictures_of(page):
    return [Image.open(io.BytesIO(base64.b64decode(each["src"].partition(",")[2]))) for each in page.all("img")]


def cards_of(page):
    return [each for each in page.all("figure") if each.get("class") == "card"]


def test_pictures_of_224_pixels_keep_every_pixel(results, page):
    assert all(each["src"].startswith("data:image/png;base64,") for each in page.all("img"))
    clean, adv, delta = (np.asarray(each).astype(int) for each in pictures_of(page)[:3])
    examples = results.examples["fgsm"]
    assert clean.shape == (224, 224, 3)
    assert (clean == np.round(255 * examples.clean[0].transpose(1, 2, 0))).all()
    assert (adv == np.round(255 * examples.adv[0].transpose(1, 2, 0))).all() and set(np.unique(adv - clean)) <= set(range(-4, 5))
    assert set(np.unique(delta)) >= {0, 255}  # +4/255 and -4/255, enlarged to half the range
    (said,) = (each for each in page.all("section") if each["id"] == "gallery")
    assert "Pictures have all of the 224 x 224 pixels, in 8 bits" in said["text"] and "left out" not in said["text"]


def test_small_pictures_are_not_spoken_of(tmp_path):
    small = Page(page_of(read_results(fabricate(tmp_path / "run", Shape(n=20, shown=4)))))
    (said,) = (each for each in small.all("section") if each["id"] == "gallery")
    assert "pixels" not in said["text"] and [each["class"] for each in small.all("div") if "cards" in each.get("class", "")] == [
        "cards"
    ]


def test_of_larger_images_pictures_show_whole_pixels(tmp_path):
    shown = read_results(fabricate(tmp_path / "run", Shape(n=20, shown=1, side=600, attacks=("fgsm",))))
    page = Page(page_of(shown))
    picture = np.asarray(pictures_of(page)[1])
    assert picture.shape == (200, 200, 3)
    assert (picture == np.round(255 * shown.examples["fgsm"].adv[0][:, ::3, ::3].transpose(1, 2, 0))).all()
    assert "Images have 600 x 600 pixels, of which pictures show every third one each way." in page.all("main")[0]["text"]


def test_pictures_have_a_limit_in_bytes_and_the_page_says_how_many_are_left_out(tmp_path, monkeypatch):
    attacks = ("fgsm", "pgd7", "pgd20", "pgd50", "pgd100")
    many = read_results(fabricate(tmp_path / "run", Shape(n=20, shown=4, side=112, attacks=attacks)))
    monkeypatch.setattr(gallery, "ROOM", 1_000_000)
    page = Page(page_of(many))
    cards, sizes = cards_of(page), sum(len(each["src"]) for each in page.all("img"))
    assert sizes <= 1_000_000 < sizes * (1 + 1.1 / len(cards))  # the next one has no room
    assert f"{20 - len(cards)} of 20 are left out" in page.all("main")[0]["text"]
    shown = Counter(card["data-attack"] for card in cards)
    assert set(shown) == set(attacks) and max(shown.values()) - min(shown.values()) <= 1  # none is preferred by more than one
    chosen = next(each for each in page.all("option") if "selected" in each)
    assert shown[chosen["value"]] == max(shown.values())
    monkeypatch.setattr(gallery, "ROOM", 10)
    assert [card["data-attack"] for card in cards_of(Page(page_of(many)))] == [chosen["value"]]


def test_large_images_do_not_make_large_chunks():
    kept = {side: how_many(torch.empty(5, 3, side, side, device="meta")) for side in (32, 96, 97, 224, 299, 512, 2048)}
    assert kept == {32: 12, 96: 12, 97: 4, 224: 4, 299: 2, 512: 1, 2048: 1}


def test_a_report_on_a_part_says_so_in_its_first_lines(results, page, tmp_path, capsys):
    assert "the first 600 of 50,000 samples" in page.all("header")[0]["text"]
    assert "> **Partial:** the first 600 of 50,000 test samples." in render(results, summarise(results), []).splitlines()[:4]
    print_run(results.path)
    first, *lines = capsys.readouterr().out.splitlines()
    assert re.search(r"^clean .* n=600, the first of 50,000$", first) and not [line for line in lines if "first" in line]
    assert compare([results.path]).about[0].count("n = 600 of 50000") == 1
    whole = read_results(fabricate(tmp_path / "whole", Shape(n=20)))
    assert "n = 20" in Page(page_of(whole)).all("header")[0]["text"] and "n = 20," in compare([whole.path]).about[0]


def test_preprocessing_is_told_with_where_the_threat_model_acts(tmp_path):
    results = read_results(fabricate(tmp_path / "run", Shape(n=20, data=DATA)))
    page = Page(page_of(results))
    told = [each["text"] for each in page.all("div") if each["text"].strip().startswith("preprocessing")]
    assert len(told) == 2 and all(WHERE in each for each in told)  # in the threat model, and in the provenance
    said = render(results, summarise(results), [])
    assert f"Images are preprocessed: {WHERE}." in said and f"- preprocessing of images: {WHERE}" in said
    found = {"verdict": {"word": "supported", "claim": None, "claimed": "", "robust": 4, "n": 10, "why": [], "took_away": []}, "findings": [],
             "about": {"machine": "one", "commands": []}}  # fmt: skip
    assert WHERE in Page(render_audit(results, found)).all("main")[0]["text"]
    older = read_results(fabricate(tmp_path / "older", Shape(n=20)))
    assert "preprocessing" not in page_of(older).replace(str(tmp_path), "") + render(older, summarise(older), []).replace(
        str(tmp_path), ""
    )


LOOK = """
document.querySelectorAll("details").forEach(each => { each.open = true; });
const said = {wide: document.documentElement.scrollWidth - document.documentElement.clientWidth};
const form = document.querySelector("form.search"), rows = () => [...document.querySelectorAll("#classes tbody tr")];
const shown = () => rows().filter(row => row.offsetParent !== null).map(row => row.cells[0].title);
const type = value => { const field = form.querySelector("input"); field.value = value; field.dispatchEvent(new Event("input", {bubbles: true})); };
said.all = shown().length;
type("CLASS n0000011"); said.some = shown();
document.querySelector("#classes thead button").click(); said.sorted = shown();
type("nothing like it"); said.none = shown(); said.output = form.querySelector("output").textContent;
type(""); said.again = shown().length;
const cards = [...document.querySelectorAll(".card")].filter(card => card.offsetParent !== null);
said.columns = new Set(cards.map(card => card.offsetLeft)).size;
const picture = cards[0].querySelector("img");
said.picture = [picture.naturalWidth, picture.offsetWidth, getComputedStyle(picture).imageRendering];
return said;
"""


def test_the_search_and_the_gallery_in_a_browser(text, tmp_path):
    for width, columns, least in ((390, 1, 100), (1280, 2, 150)):
        (said,) = in_browser(tmp_path, [text], LOOK, width=width)
        assert said["wide"] == 0 and said["all"] == said["again"] == CLASSES
        assert len(said["some"]) == 10 and all("n0000011" in each for each in said["some"])  # 110 to 119
        assert said["sorted"] == sorted(said["some"]) and said["none"] == [] and said["output"] == f"0 of {CLASSES} shown"
        assert said["columns"] == columns and said["picture"][0] == 224 >= said["picture"][1] >= least
        assert said["picture"][2] == "auto"


@pytest.mark.slow
def test_fifty_thousand_samples_of_a_thousand_classes_make_pages_of_less_than_10_mb(tmp_path):
    shape = Shape(n=50_000, classes=1000, attacks=("fgsm", "pgd7", "pgd20"), cascade=True, side=224, shown=4, chunk=1000)
    for seed in (0, 1):
        fabricate(tmp_path / f"run{seed}", shape, seed)

    def call(*arguments):
        """Runs a command, and returns the most memory that it had, in bytes."""
        code = "import resource, sys\nfrom robench.cli import main\nmain(sys.argv[1:], standalone_mode=False)\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True, text=True, timeout=300
        )
        return 1024 * int(done.stdout.splitlines()[-1])

    memory = [
        call("report", tmp_path / "run0"),
        call("compare", tmp_path / "run0", tmp_path / "run1", "--out", tmp_path / "compare.html"),
        call("leaderboard", tmp_path, "--out", tmp_path / "leaderboard.html"),
    ]
    assert max(memory) < 2 * 2**30
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "chunks" not in path.parts]
    large = {path.name for path in written if path.stat().st_size > 10_000_000}
    assert large == {"verdicts.csv"}  # a row per sample and attack, which is data
    assert (tmp_path / "run0" / "report.html").stat().st_size > 1_000_000 > (tmp_path / "compare.html").stat().st_size
    assert max(path.stat().st_size for path in (tmp_path / "run0" / "chunks").rglob("*.npz")) < 6_000_000
