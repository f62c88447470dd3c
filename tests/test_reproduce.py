"""The paper's experiment, end to end on digits, and its words on verdicts known by hand."""

import shutil
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch
from cases import BrightnessClassifier, brightness_data
from click.testing import CliRunner

from robench.checkpoint import load_checkpoint, read_description
from robench.cli import main
from robench.data import load_dataset
from robench.evaluation.packed_images import read_packed
from robench.models.classifier import Classifier
from robench.models.multihead import MultiHead, rebuild
from robench.reproduce import QUICK, Settings, _Bench, compact
from robench.reproduce.cells import cell_by_cell, cells_of
from robench.reproduce.claims import claims, verdict
from robench.reproduce.measured import Measured, load_measured, save_measured
from robench.reproduce.mechanism import explain
from robench.reproduce.page import write_page
from robench.reproduce.plan import ATTACKS, PUBLISHED, Trained, models
from robench.reproduce.reasons import why
from robench.reproduce.rounding import STORED, rounded
from robench.training import TrainSpec, train
from robench.types import Dataset, RobenchError, ThreatModel


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def origin(epochs=100, precision="fp32", **versions):
    """What is recorded of a training, as far as the tables say it."""
    return {"recipe": {"epochs": epochs, "precision": precision}, "versions": versions, "weights": "a"}


def measured(arch, *, clean, stored, white_box, n=100, **more):
    """A model of which the first ``clean`` samples are right, the first ``stored`` on stored images, ``white_box`` under attack."""
    about = {"mechanism": {}, "n": n, "model": {"origin": origin(**more.pop("origin", {}))}}
    model = Trained("cifar10", arch, more.pop("role", "paper"), **more)
    rows = pd.DataFrame({"index": range(n), "label": 1})
    rows["clean"] = (rows["index"] < clean).astype(int)
    for attack in ATTACKS:
        rows[f"stored {attack}"] = (rows["index"] < stored).astype(int)
    for attack in (*ATTACKS, "autoattack"):
        rows[attack] = ["r" if place < white_box else "b" if place < clean else "c" for place in range(n)]
    return Measured(model, rows, about)


def test_the_numbers_are_those_known_by_hand():
    found = measured("contrastive", clean=70, stored=60, white_box=10)
    assert (found.accuracy("clean"), found.accuracy("pgd20", stored=True), found.accuracy("union")) == (0.7, 0.6, 0.1)
    found.verdicts.loc[3, "fgsm"] = "q"  # returned as robust; one of its queries was not
    assert (found.accuracy("fgsm"), found.accuracy("union")) == (0.1, 0.09)
    source = measured("single", clean=80, stored=99, white_box=2)
    assert source.accuracy("pgd7", stored=True) == 0.02  # its stored images are its own


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 0.01, "refuted"), (0.5, 0.58, "weakened"), (0.55, 0.62, "supported"), (0.61, 0.7, "exceeded")],
)
def test_a_claim_of_sixty_percent_is_judged_by_the_interval(low, high, expected):
    assert verdict(0.6, low, high) == expected


def test_the_papers_claims_are_refuted_by_verdicts_that_refute_them_and_not_by_others():
    single = measured("single", clean=82, stored=0, white_box=0)
    said = "\n".join(claims("cifar10", [single, measured("contrastive", clean=73, stored=60, white_box=0)]))
    assert (
        "As a white-box number: **refuted**" in said
        and "transfer from the single-task model: **supported**, ours is 60.00 %" in said
    )
    assert (
        "+60.6 points over the single-task model (PGD-7).** With both attacked alike: **refuted**, +0.00 points [-3.62, 3.62]"
        in said
    )
    assert "changes by -9.3 points.** The direction **holds**" in said
    assert "**Does not hold**: 0.00 % survive (at most 3.62 %" in said
    said = "\n".join(claims("cifar10", [single, measured("contrastive", clean=83, stored=60, white_box=60)]))
    assert "As a white-box number: **supported**" in said and "**State of the art.** **Holds**" in said
    assert "changes by -9.3 points.** The direction **does not hold**" in said
    masked = measured("contrastive", clean=73, stored=60, white_box=60)
    masked.verdicts["autoattack"] = "b"
    said = "\n".join(claims("cifar10", [single, masked]))
    assert (
        "As a white-box number: **supported**, 60.00 % [50.20, 69.06] of all" in said
        and "0.00 % [0.00, 3.62] survive every attack" in said
    )


@pytest.mark.parametrize(
    ("control", "expected"), [(40, "**Does not hold**: 0.00 %"), (1, "**Cannot be told: the control itself is not robust**")]
)
def test_robustness_without_adversarial_training_is_judged_by_a_control_that_is_robust(control, expected):
    plain = [measured(arch, clean=80, stored=60, white_box=0) for arch in ("single", "contrastive")]
    trained = measured("single", clean=70, stored=70, white_box=control, role="adversarial", adversarial="nfgsm", n=80)
    assert f"**Robust without adversarial training.** {expected}" in "\n".join(claims("cifar10", [*plain, trained]))


def test_another_seed_of_a_paper_model_is_held_against_the_one_that_shares_the_sources():
    there = [measured("single", clean=80, stored=0, white_box=0), measured("contrastive", clean=70, stored=42, white_box=0)]
    assert "(seed 1)" not in "\n".join(claims("cifar10", there))
    other = measured("contrastive", clean=70, stored=56, white_box=3, seed=1)
    said = "\n".join(claims("cifar10", [*there, other]))
    assert "**Control: contrastive multitask (seed 1).** Under the paper's protocol (PGD-20) 56.00 %" in said
    assert "(published 59.95: **supported**)" in said and "has 42.00 %" in said and "White-box 3.00 %" in said


@pytest.mark.parametrize(("contrastive", "expected"), [(0, "does not hold"), (1, "does not hold"), (30, "holds")])
def test_contrastive_beats_supervised_only_by_more_than_a_point_that_chance_does_not_explain(contrastive, expected):
    there = [
        measured("single", clean=80, stored=0, white_box=0),
        measured("supervised", clean=80, stored=20, white_box=0),
        measured("contrastive", clean=80, stored=30, white_box=contrastive),
    ]
    assert f"White-box, all attacks together: **{expected}**, {contrastive}.00 against 0.00 %" in "\n".join(
        claims("cifar100", there)
    )


def test_the_mechanism_of_a_classifier_known_by_hand(monkeypatch, tmp_path):
    """Darkening is what raises its loss on bright images; the stored images darken all but a quarter of the pixels, which they brighten."""
    images, labels = brightness_data([0.05] * 10)
    moved = torch.full_like(images, -0.02)
    moved[:, :, 0] = 0.02
    monkeypatch.setattr("robench.reproduce.mechanism.saved_images", lambda run, attack, dataset, n: (images + moved)[:n])
    data = Dataset("gray", "test", images, labels, ("dark", "bright"))
    monkeypatch.setattr("robench.reproduce.mechanism.to_unit", lambda pixels: pixels)
    found = explain(Classifier(BrightnessClassifier(), 2), data, ThreatModel("Linf", 0.02), tmp_path, ("fgsm", "pgd20"), 10)
    assert found["sign agreement"] == {"fgsm": 0.75, "pgd20": 0.75}
    assert found["l2"]["fgsm"] == pytest.approx(0.02 * 48**0.5, rel=1e-4)
    assert found["transfer"][0] == pytest.approx(found["white-box"][0]) and found["transfer"][-1] > found["transfer"][0]
    assert found["white-box"][-1] > found["transfer"][-1]  # its own images darken every pixel


def test_the_plan_has_every_model_of_the_paper_and_its_controls_in_order_of_rank():
    names = [model.name for model in models("cifar100", 3)]
    assert names[:3] == ["cifar100-single-0", "cifar100-supervised-0", "cifar100-contrastive-0"]
    assert {"cifar100-single-simclr-0", "cifar100-single-1", "cifar100-single-nfgsm-0", "cifar100-contrastive-nfgsm-0"} <= set(
        names
    )
    assert len(names) == len(set(names)) == 3 + 2 + 2 + 5  # seeds 1 and 2 of three models, of which one is the second-seed control
    assert [model.name for model in models("cifar10", 1) if model.is_source] == ["cifar10-single-0"]
    assert all(len(row) == 1 + len(ATTACKS) for table in PUBLISHED.values() for row in table.values())


@pytest.mark.slow
def test_weights_are_compacted_without_touching_what_the_backbone_uses(few, tmp_path):
    spec = TrainSpec.of("single", few, backbone="small", epochs=1, batch_size=32)
    checkpoint = load_checkpoint(train(spec, few, few, out=tmp_path / "model.safetensors", show_progress=False))
    torch.manual_seed(0)
    weights = MultiHead("resnet18", checkpoint.heads).state_dict()
    full = replace(checkpoint, backbone="resnet18", weights=weights)
    small = compact(full)
    images = few.images[:4] / 255
    kept = [tensor for tensor in small.weights.values() if tensor.dtype == torch.float16]
    zeros = sum(int((tensor == 0).sum()) for tensor in kept) / sum(tensor.numel() for tensor in kept)
    assert 0.6 < zeros < 0.65  # the taps that only ever meet padding
    halved = replace(full, weights={n: rounded(t) if small.weights[n].dtype == torch.float16 else t for n, t in weights.items()})
    logits = [rebuild(each)(images)["main"] for each in (small, halved, full)]
    assert torch.equal(logits[0], logits[1])  # zeroing changes nothing, rounding a little
    assert (logits[0] - logits[2]).abs().max() < 0.05
    assert all(t.dtype == torch.float32 and torch.equal(t, weights[n]) for n, t in small.weights.items() if t.ndim == 1)
    assert small.versions == full.versions | {"stored": STORED} and STORED == "float16, rounded to 8 significant bits"
    again = compact(small)
    assert again.digest == small.digest and again.versions == small.versions


def significant_bits(weights):
    """Of each float16 number, counted in the integer that it is a multiple of the smallest subnormal by."""
    whole = (weights.double().abs() * 2**24).long()
    lowest = whole & -whole  # the lowest bit that is set
    return torch.where(whole > 0, torch.log2((whole / lowest.clamp(min=1)).double()).floor() + 1, 0)


def test_rounded_weights_have_eight_significant_bits_and_are_the_nearest():
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)  # every float16 number there is
    every = every[every.isfinite() & (every.abs() <= 65280)]
    kept = rounded(every)
    assert kept.dtype == torch.float16 and int(significant_bits(kept).max()) == 8 and int(significant_bits(every).max()) == 11
    assert torch.equal(rounded(kept).view(torch.int16), kept.view(torch.int16))  # also the sign of zero
    assert torch.equal(kept.signbit(), every.signbit())
    change, size = (kept.double() - every.double()).abs(), every.double().abs()
    assert bool((change <= 2**-8 * size).all())
    grid = torch.unique(kept.double())
    place = torch.searchsorted(grid, every.double())
    below, above = grid[(place - 1).clamp(min=0)], grid[place.clamp(max=len(grid) - 1)]
    assert torch.equal(change, torch.minimum((every.double() - below).abs(), (above - every.double()).abs()))
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)])
    assert rounded(ties).tolist() == [1.0, 1 + 2**-6, -1.0]  # to the even neighbour


def test_float32_weights_are_rounded_once_and_tiny_ones_to_what_float16_has():
    torch.manual_seed(0)
    weights = torch.randn(100_000) * torch.logspace(-8, 1, 100_000)
    kept, size = rounded(weights), weights.double().abs()
    assert int(significant_bits(kept).max()) <= 8
    assert bool(((kept.double() - weights.double()).abs() <= 2**-8 * size + (size < 2**-14) * 2**-25).all())
    assert rounded(torch.tensor([1 + 2**-8 + 2**-20])).item() == 1 + 2**-7  # by way of 11 bits it would be a tie, and 1


def test_a_weight_that_float16_does_not_hold_is_refused(few, tmp_path):
    spec = TrainSpec.of("single", few, backbone="small", epochs=1, batch_size=32)
    checkpoint = load_checkpoint(train(spec, few, few, out=tmp_path / "model.safetensors", show_progress=False))
    name = next(name for name, tensor in checkpoint.weights.items() if tensor.ndim > 1)
    checkpoint.weights[name].view(-1)[0] = 70_000
    with pytest.raises(RobenchError, match=f"{name} has weights up to 70000, and float16 ends at 65,280"):
        compact(checkpoint)


@pytest.mark.slow
def test_quick_runs_the_whole_pipeline_and_again_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("reproduce", "--quick", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "reports/quick/report.md"
    out = tmp_path / "reports/quick"
    names = ["single-0", "supervised-0", "contrastive-0", "single-simclr-0", "single-1", "single-nfgsm-0", "contrastive-nfgsm-0"]
    summary = pd.read_csv(out / "summary.csv").set_index(["model", "protocol", "attack"])["accuracy"]
    assert list(dict.fromkeys(model for model, *_ in summary.index)) == [f"digits-{name}" for name in names]
    contrastive = summary["digits-contrastive-0"]
    # What the paper's protocol does: the stored images harm, but far less than the model's own.
    assert contrastive["white-box", "union"] < 0.1 < contrastive["paper", "pgd20"] < contrastive["none", "clean"]
    assert summary["digits-single-nfgsm-0", "white-box", "autoattack"] > contrastive["white-box", "autoattack"]
    kept = [read_packed(path).index.tolist() for path in (out / "runs/digits-single-0/adv").glob("pgd20-*/*.npz")]
    assert kept == [list(range(60))]  # crafted on every image, also on those that the model gets wrong
    before = {
        path: path.read_bytes() for path in out.rglob("*") if path.is_file() and not {"runs", "checkpoints"} & set(path.parts)
    }
    assert {"report.md", "summary.csv", "digits-why.png", "digits-contrastive-0.csv"} <= {path.name for path in before}
    said = (out / "report.md").read_text()
    assert "Not finished" not in said
    assert "- Trained on cpu in float32, evaluated on cpu in float32: `digits-single-0`, `digits-supervised-0`, `dig" in said
    assert (tmp_path / "checkpoints/quick/digits-single-0.safetensors.xz").exists()
    (row,) = (line for line in said.splitlines() if line.startswith("| `digits-single-0` | 8 | 0 | cpu in float32 |"))
    assert f"| {STORED} |" in row
    for folder in ("runs", "checkpoints"):  # what is not committed is not needed
        shutil.rmtree(out / folder)
    assert call("reproduce", "--quick", "--threads", 1).exit_code == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not (out / "runs").exists()


def test_quick_takes_no_settings():
    result = call("reproduce", "--quick", "--epochs", 3)
    assert result.exit_code == 2 and "--quick has settings of its own; leave --epochs out" in result.stderr


def test_verdicts_of_other_settings_or_another_source_are_refused(few, tmp_path):
    bench = _Bench(QUICK, tmp_path, tmp_path, {"data_dir": None})
    model = QUICK.plan()[0]
    recipe = asdict(QUICK.spec(model, few))
    bench.refuse_difference(model, recipe, tmp_path)
    with pytest.raises(RobenchError, match="digits-single-0 was trained with other settings: epochs 9 there and 8 here"):
        bench.refuse_difference(model, recipe | {"epochs": 9}, tmp_path)
    for seed, digest in ((0, "a"), (1, "b")):
        keep(tmp_path, measured("contrastive", clean=70, stored=60, white_box=10, seed=seed), digest)
    with pytest.raises(RobenchError, match="cifar10: the stored images are of different weights"):
        write_page(tmp_path, Settings().plan(), {})


def keep(out, found, digest):
    """Stores verdicts whose stored images are those of the weights ``digest``."""
    more = {
        "source digest": digest, "threat": {"norm": "Linf", "eps_text": "8/255"}, "chunk": 250, "command": "robench reproduce", "device": "cpu",
        "seconds": 1.0, "forwards": 1, "backwards": 1, "machine": ["cpu"], "environment": {"processor": "x"},
    }  # fmt: skip
    about = found.about | more
    about["model"] = {"origin": {**about["model"]["origin"], "training seconds": 60}}
    about["model"]["origin"]["recipe"] |= {"seed": found.model.seed, "recipe": "paper"}
    about["model"]["origin"]["versions"] |= {"torch": "2"}
    save_measured(out, Measured(found.model, found.verdicts, about))


def test_what_was_said_of_other_stored_images_is_left_out_and_white_box_stays(tmp_path):
    keep(tmp_path, measured("single", clean=80, stored=99, white_box=2), "new")
    keep(tmp_path, measured("contrastive", clean=70, stored=60, white_box=10), "new")
    keep(tmp_path, measured("single", clean=50, stored=40, white_box=25, role="adversarial", adversarial="nfgsm"), "old")
    said = write_page(tmp_path, Settings().plan(), dict.fromkeys(("cifar10", "cifar100"), "robench reproduce")).read_text()
    (row,) = (line for line in said.splitlines() if line.startswith("| **single-task + adversarial training**"))
    assert row.count("not evaluated") == 4 and '"Not evaluated": the weights' in said
    summary = pd.read_csv(tmp_path / "summary.csv").set_index(["model", "protocol", "attack"])["accuracy"]
    assert summary["cifar10-single-nfgsm-0"]["white-box"]["autoattack"] == 0.25
    assert "paper" not in summary["cifar10-single-nfgsm-0"]
    assert summary["cifar10-contrastive-0"]["paper"]["pgd20"] == 0.6


@pytest.mark.slow
def test_a_finished_model_is_asked_about_the_images_of_a_new_source_and_nothing_else(tmp_path):
    where = {"data_dir": None, "device": "cpu", "threads": 1}
    settings = replace(QUICK, epochs=1, adversarial_epochs=1, n=20)
    bench = _Bench(settings, tmp_path / "out", tmp_path / "w", where)
    source, model = (each for each in settings.plan() if each.name in ("digits-single-0", "digits-contrastive-0"))
    save_measured(bench.out, bench.measure(source, bench.train(source)))
    before = bench.measure(model, bench.train(model))
    save_measured(bench.out, before)
    assert not bench.is_missing(model)
    for path in [*bench.paths(source), *(bench.out / "runs").glob("*single-0")]:  # another training of the source
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    other = replace(bench.settings.spec(source, bench.data("digits", "train")), lr=4e-3)
    train(other, bench.data("digits", "train"), bench.data("digits", "test"), out=bench.paths(source)[0], device="cpu")
    assert bench.is_missing(model)
    after = _Bench(replace(settings, train=settings.train | {"lr": 4e-3}), bench.out, bench.weights, where).renew(
        model, bench.paths(model)[0], before
    )
    white_box = [name for name in before.verdicts if not name.startswith("stored")]
    assert after.verdicts[white_box].equals(before.verdicts[white_box])
    assert after.about["source digest"] == read_description(bench.paths(source)[0])["digest"] != before.about["source digest"]
    save_measured(bench.out, after)
    assert not bench.is_missing(model)


def test_a_finished_model_of_another_precision_is_taken_and_what_is_missing_is_trained_in_the_one_asked_for(tmp_path, monkeypatch):
    where = {"data_dir": None, "device": "cpu", "threads": 1}
    settings = replace(QUICK, epochs=1)
    model = settings.plan()[0]
    path = _Bench(replace(settings, precision="bf16"), tmp_path, tmp_path / "w", where).train(model)
    assert read_description(path)["recipe"]["precision"] == "bf16"
    content = path.read_bytes()
    monkeypatch.setattr("robench.reproduce.train", lambda *arguments, **options: pytest.fail("trained again"))
    bench = _Bench(settings, tmp_path, tmp_path / "w", where)
    assert bench.train(model) == path and path.read_bytes() == content
    path.unlink()  # killed between the training's end and its rounding
    assert bench.train(model) == path and path.read_bytes() == content
    with pytest.raises(RobenchError, match="trained with other settings: epochs 1 there and 2 here; give the same settings"):
        _Bench(replace(settings, epochs=2), tmp_path, tmp_path / "w", where).train(model)
    recipe = asdict(settings.spec(model, load_dataset("digits", "train")))
    bench.refuse_difference(model, recipe | {"precision": "bf16"}, tmp_path)  # nor are its verdicts refused


def test_the_command_that_goes_on_names_the_precision():
    assert Settings().command("cifar10") == "robench reproduce --table 1 --epochs 100 --adversarial-epochs 100 --seeds 3"
    assert Settings(precision="auto").command("cifar10").endswith(" --seeds 3 --precision auto")
    result = call("reproduce", "--quick", "--precision", "bf16")
    assert result.exit_code == 2 and "--quick has settings of its own; leave --precision out" in result.stderr


H200 = {"device": "NVIDIA H200", "convolutions": "TF32", "torch": "2.11", "stored": STORED, "step": "captured in one CUDA graph"}


def page_of(out, *there):
    """The page on models that are stored as ``reproduce`` stores them."""
    for found in there:
        about = {
            "threat": {"norm": "Linf", "eps_text": "8/255"}, "chunk": 250, "device": "cpu", "environment": {"processor": "X"}, "seconds": 60.0,
            "forwards": 7, "backwards": 5, "machine": ["cpu, 1 threads"], "command": "robench reproduce", "source digest": "a",
        }  # fmt: skip
        found.about["model"]["origin"]["recipe"] |= {"seed": 0, "recipe": "paper"}
        found.about["model"]["origin"] |= {"training seconds": 330}
        save_measured(out, Measured(found.model, found.verdicts, found.about | about))
    return write_page(out, [found.model for found in there], {"cifar10": "robench reproduce"}).read_text()


def rows_of(page, start):
    """Cells of the rows of a table that begins so."""
    lines = page[page.index(f"| {start}") :].split("\n\n")[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_the_page_says_per_row_what_trainings_differ_in(tmp_path):
    single = measured("single", clean=80, stored=0, white_box=0, origin=H200)
    other = measured("single", clean=80, stored=40, white_box=0, role="second seed", seed=1,
                     origin={"precision": "bf16", "device": "cpu", "torch": "2.14"})  # fmt: skip
    control = measured("single", clean=50, stored=50, white_box=25, role="adversarial", adversarial="nfgsm",
                       origin={"epochs": 12, "torch": "2.14"})  # fmt: skip
    contrastive = measured("contrastive", clean=70, stored=60, white_box=0, origin=H200)
    page = page_of(tmp_path, single, contrastive, other, control)
    told = [(row["protocol"], row["epochs"], row["trained"]) for row in rows_of(page, "model | protocol")]
    h200, cpu, old = ("100", "NVIDIA H200, TF32"), ("100", "cpu, bf16"), ("12", "device not recorded, fp32")
    theirs, ours = "their protocol, ours", "white-box, ours"
    assert told == [
        ("published", "", ""), (ours, *h200), ("published", "", ""), (theirs, *h200), (ours, *h200),
        (theirs, *cpu), (ours, *cpu), (theirs, *old), (ours, *old),
    ]  # fmt: skip
    assert (
        "- Trained on NVIDIA H200 with TF32 convolutions, evaluated on cpu in float32: `cifar10-single-0`, `cifar10-contrastive-0`.\n"
        "- Trained on cpu in bf16, evaluated on cpu in float32: `cifar10-single-1`.\n"
        "- Trained on a device not recorded, in float32, evaluated on cpu in float32: `cifar10-single-nfgsm-0`."
    ) in page
    obtained = {row["model"].strip("`"): row for row in rows_of(page, "model | epochs")}
    assert (obtained["cifar10-single-0"]["step"], obtained["cifar10-single-0"]["stored"]) == ("captured in one CUDA graph", STORED)
    assert (obtained["cifar10-single-nfgsm-0"]["epochs"], obtained["cifar10-single-nfgsm-0"]["stored"]) == ("12", "not recorded")
    assert "n = 100, 12 epochs (against 100)" in page
    summary = pd.read_csv(tmp_path / "summary.csv").groupby("model")[["epochs", "trained"]].first()
    assert tuple(summary.loc["cifar10-single-1"]) == (100, "cpu, bf16") and summary.loc["cifar10-single-nfgsm-0", "epochs"] == 12


def test_the_page_has_no_such_columns_where_trainings_are_alike(tmp_path):
    page = page_of(tmp_path, *(measured(arch, clean=80, stored=9, white_box=0, origin=H200) for arch in ("single", "contrastive")))
    assert list(rows_of(page, "model | protocol")[0])[-2:] == ["AutoAttack", "n"] and "(against" not in page


def test_each_published_cell_lies_in_our_interval_or_is_said_to_be_off_by_what_it_is():
    single = measured("single", clean=8246, stored=0, white_box=0, n=10_000)
    contrastive = measured("contrastive", clean=7316, stored=5995, white_box=0, n=10_000)
    natural, fgsm, pgd7, pgd20, pgd50 = cells_of("cifar10", contrastive)
    assert (natural.text, pgd20.text, pgd50.text) == ("inside", "inside", "inside")
    assert fgsm.distance == pytest.approx(58.61 - 58.99, abs=0.01) and fgsm.text == "-0.38"  # Wilson's lower end
    assert pgd7.published == 60.62 and pgd7.text == "inside"  # the upper end is 60.90
    said = cell_by_cell("cifar10", [single, contrastive])
    assert said.startswith("8 of 10 published cells lie in our 95 % interval")
    assert (
        "Furthest off: single-task, FGSM: published 2.89, ours 0.00 [0.00, 0.04]; contrastive multitask, FGSM: published 58.61, ours 59.95"
        in said
    )
    assert cell_by_cell("digits", [single]) == ""


def test_why_compares_models_that_differ_in_one_thing_on_the_same_images():
    mechanism = {"n": 100, "l2": dict.fromkeys(ATTACKS, 1.5), "sign agreement": dict.fromkeys(ATTACKS, 0.5)}
    plain = measured("single", clean=80, stored=40, white_box=0, role="second seed", seed=1)
    views = measured("single", clean=75, stored=54, white_box=0, role="views", views="simclr")
    contrastive = measured("contrastive", clean=70, stored=57, white_box=0)
    other = measured("contrastive", clean=70, stored=61, white_box=0, seed=1)
    for place, found in enumerate((plain, views, contrastive, other)):
        found.about["mechanism"] = mechanism | {"sign agreement": dict.fromkeys(ATTACKS, 0.54 - place / 100)}
    kept, steps, directions = why([measured("single", clean=80, stored=0, white_box=0), plain, views, contrastive, other])
    rows = {row["models"]: row for row in rows_of(steps, "what changes")}
    points = {name: row["points on stored images"] for name, row in rows.items()}
    assert points == {
        "single-task on SimCLR views - single-task, other seed": "+14.00",
        "contrastive multitask - single-task on SimCLR views": "+3.00",
        "contrastive multitask - single-task, other seed": "+17.00",
        "contrastive multitask (seed 1) - single-task, other seed": "+21.00",
        "contrastive multitask (seed 1) - contrastive multitask": "+4.00",
    }
    assert rows["contrastive multitask - single-task, other seed"]["points of natural accuracy"] == "-10.00"
    assert {row["model"]: row["of those right without attack"] for row in rows_of(kept, "model")}[
        "single-task, other seed"
    ] == "50.00"
    assert "is -1.00" in directions  # who agrees more keeps less, in all four
    assert list(why([plain.without_stored()])) == []


def test_a_damaged_table_is_refused(tmp_path):
    found = measured("contrastive", clean=70, stored=60, white_box=10)
    save_measured(tmp_path, Measured(found.model, found.verdicts, {"n": 100, "mechanism": {}}))
    again = load_measured(tmp_path, found.model)
    assert again.accuracy("pgd20", stored=True) == 0.6 and load_measured(tmp_path, Trained("cifar10", "single", "paper")) is None
    table = tmp_path / "verdicts" / "cifar10-contrastive-0.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:50]))
    with pytest.raises(RobenchError, match="is damaged .*49 rows, 100 expected"):
        load_measured(tmp_path, found.model)


def test_a_model_that_is_not_in_the_plan_is_named_with_those_that_are(tmp_path):
    done = CliRunner().invoke(
        main, ["reproduce", "--only", "cifar10-singel-0", "--out", str(tmp_path / "o"), "--weights", str(tmp_path / "w")]
    )
    assert done.exit_code == 1
    assert "cifar10-singel-0: no such model; there are cifar10-single-0, cifar10-contrastive-0" in done.output
    assert not (tmp_path / "w").exists()
