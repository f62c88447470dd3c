"""Images crafted on another model, on other heads, or long ago; and the replay of what was kept."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import BrightnessClassifier, brightness_data, column, darken, fake, linear_case
from test_engine import OFFSETS, SPEC, outcomes, run

from robench.attacks.crafting_targets import crafted_on, make_heads_target
from robench.checkpoint import load_checkpoint
from robench.evaluation.external_images import external_column
from robench.evaluation.packed_images import pack, read_packed
from robench.models.classifier import Classifier
from robench.models.seeded import seeded
from robench.models.subject import Subject, classifier_of_checkpoint, of_head
from robench.report import write_report
from robench.run.attack import attack
from robench.run.request import AttackRequest
from robench.run.verify import verify
from robench.training import TrainSpec, train
from robench.types import Column, Dataset, Outcome, RobenchError, ThreatModel


@pytest.fixture(scope="module")
def checkpoints(digits_train, digits_test, tmp_path_factory):
    """One small model of each variant on digits, trained for three epochs."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {}
    for arch in ("single", "supervised", "contrastive"):
        spec = TrainSpec.of(arch, digits_train, backbone="small", epochs=3, batch_size=64, lr=5e-3)
        paths[arch] = train(spec, digits_train, digits_test, out=folder / f"{arch}.safetensors", show_progress=False)
    return paths


def attacked(ckpt, out, suite, n=30, **asked):
    return attack(AttackRequest(suite, n=n, chunk=20, **asked), ckpt=ckpt, out=out, threads=1)


def table(run_folder):
    import pandas as pd

    return pd.read_csv(run_folder / "summary.csv").set_index("attack")


class Shifted(BrightnessClassifier):
    """Sees everything a little darker: wrong on images that the other model still gets right."""

    def forward(self, images):
        return super().forward(images - 0.05)


def test_a_transfer_attack_is_crafted_on_every_sample_of_the_other_model_and_judged_here(tmp_path):
    seen = []

    def record(model, images, labels, threat, seed):
        seen.append((type(model.module).__name__, len(images)))
        return darken(model, images, labels, threat, seed)

    other = Subject("other", Classifier(Shifted(), 2), "f" * 64, {})
    transferred = crafted_on(fake("record", record), other)
    assert transferred.name == "record@other" and transferred.params["transfer from"] == "f" * 64
    results = run(tmp_path, [Column(transferred.name, (transferred,), is_cascade=False)], spec=replace(SPEC, chunk=5))
    assert seen == [("Shifted", 5), ("Shifted", 5)]  # misclassified samples are crafted on too
    assert outcomes(results, "record@other") == outcomes(run(tmp_path / "own", [column("darken", darken)]), "darken")


@pytest.mark.slow
def test_the_report_names_a_transfer_with_the_digest_of_its_source(checkpoints, tmp_path):
    folder = attacked(checkpoints["single"], tmp_path / "run", f"pgd7,pgd7@{checkpoints['contrastive']}")
    summary = table(folder)
    source = classifier_of_checkpoint(checkpoints["contrastive"], None, "cpu").digest
    text = (folder / "report.md").read_text()
    assert source in text and "PGD-7 @ contrastive (transfer)" in text
    assert summary.loc["pgd7@contrastive", "robust_accuracy"] > summary.loc["pgd7", "robust_accuracy"]
    assert summary.loc["union", "robust_accuracy"] <= summary.loc["pgd7", "robust_accuracy"]


def test_a_source_that_is_gone_or_a_cascade_is_refused(checkpoints, tmp_path):
    with pytest.raises(RobenchError, match=r"crafts on the checkpoint 'gone.safetensors', which is no file"):
        attacked(checkpoints["single"], tmp_path / "run", "pgd7@gone.safetensors")
    with pytest.raises(RobenchError, match="a cascade has no images to transfer"):
        attacked(checkpoints["single"], tmp_path / "run", f"autoattack@{checkpoints['single']}")
    assert not (tmp_path / "run").exists()


def test_the_joint_cross_entropy_is_the_sum_of_the_heads(checkpoints, digits_test):
    subject = classifier_of_checkpoint(checkpoints["supervised"], digits_test, "cpu")
    target = make_heads_target("joint", subject, digits_test)
    index = torch.arange(12)
    images, labels = digits_test.images[:12] / 255, digits_test.labels[:12]
    joint, combined = target.prepare(images, labels, index)
    outputs = subject.model(images)
    expected = F.cross_entropy(outputs["main"], labels) + F.cross_entropy(outputs["coarse"], digits_test.coarse_labels[:12])
    assert joint.n_classes == target.n_classes(12) == 10 * len(digits_test.coarse_classes)
    assert torch.allclose(F.cross_entropy(joint(images), combined), expected, atol=1e-5)


def test_the_contrastive_head_must_tell_the_chunks_clean_images_apart(checkpoints, digits_test):
    subject = classifier_of_checkpoint(checkpoints["contrastive"], digits_test, "cpu")
    target = make_heads_target("projection", subject, digits_test)
    images, labels = digits_test.images[:12] / 255, digits_test.labels[:12]
    head, own = target.prepare(images, labels, torch.arange(100, 112))
    assert own.tolist() == list(range(12)) and head(images).argmax(1).tolist() == own.tolist()
    moved = (images + 0.1).clamp(0, 1)
    z, z0 = (F.normalize(subject.model(x)["projection"], dim=1) for x in (moved, images))
    assert torch.allclose(F.cross_entropy(head(moved), own), F.cross_entropy(z @ z0.T / 0.07, own), atol=1e-5)
    joint = make_heads_target("joint", subject, digits_test)
    assert joint.n_classes(12) == math.prod((10, 12))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "heads"), [("supervised", "coarse"), ("supervised", "joint"), ("contrastive", "joint")])
def test_attacks_on_other_heads_are_judged_on_the_main_one(checkpoints, tmp_path, arch, heads):
    folder = attacked(checkpoints[arch], tmp_path / "run", "pgd7,fgsm", attack_heads=heads)
    summary = table(folder)
    assert list(summary.index) == ["clean", f"pgd7(heads={heads})", f"fgsm(heads={heads})", "union"]
    assert summary.loc["union", "robust_accuracy"] < summary.loc["clean", "robust_accuracy"]
    assert summary["backwards"].iloc[1] == 7 * (30 - summary["misclassified"].iloc[0])
    main = table(attacked(checkpoints[arch], tmp_path / "main", "pgd7"))
    assert (
        summary.loc["clean"]
        .drop(["seconds", "seconds_per_sample"])
        .equals(main.loc["clean"].drop(["seconds", "seconds_per_sample"]))
    )


def test_another_head_is_judged_when_asked(checkpoints, digits_test, tmp_path):
    folder = attacked(checkpoints["supervised"], tmp_path / "run", "pgd7", head="coarse")
    subject = classifier_of_checkpoint(checkpoints["supervised"], digits_test, "cpu")
    predicted = subject.model(digits_test.images[:30] / 255)["coarse"].argmax(1)
    expected = (predicted == digits_test.coarse_labels[:30]).float().mean()
    assert table(folder).loc["clean", "robust_accuracy"] == pytest.approx(float(expected))


@pytest.mark.parametrize("suite", ["autoattack", "apgd-ce", "square"])
def test_attacks_that_stop_where_their_own_classifier_errs_are_refused_on_other_heads(checkpoints, tmp_path, suite):
    with pytest.raises(
        RobenchError, match=f"`attack_heads=joint`: {suite} leaves a sample alone as soon as the heads that it asks"
    ):
        attacked(checkpoints["supervised"], tmp_path / "run", f"pgd2,{suite}", attack_heads="joint")


def test_the_coarse_head_attacked_through_the_main_one_is_pushed_away_from_main_labels(checkpoints, digits_test):
    subject = classifier_of_checkpoint(checkpoints["supervised"], of_head(digits_test, "coarse"), "cpu", "coarse")
    target = make_heads_target("main", subject, digits_test)
    _, own = target.prepare(digits_test.images[5:9] / 255, digits_test.coarse_labels[5:9], torch.arange(5, 9))
    assert own.tolist() == digits_test.labels[5:9].tolist() != digits_test.coarse_labels[5:9].tolist()


def test_a_retrained_head_that_images_are_crafted_on_makes_other_columns(checkpoints, digits_test):
    checkpoint = load_checkpoint(checkpoints["supervised"])
    subject = classifier_of_checkpoint(checkpoints["supervised"], digits_test, "cpu")
    target = make_heads_target("coarse", subject, digits_test)
    before = target.digest
    with torch.no_grad():
        subject.model.heads["coarse"][0].weight.add_(1e-3)
    assert target.digest != before and len(checkpoint.heads) == 2


@pytest.mark.parametrize(
    ("arch", "asked", "message"),
    [
        ("single", {"attack_heads": "coarse"}, "`attack_heads='coarse'`: the model has the heads main; name one, or joint for all"),
        (
            "contrastive",
            {"head": "projection", "attack_heads": "projection"},
            "`head='projection'`: digits has labels for main, coarse only",
        ),
        ("single", {"head": "coarse", "attack_heads": "coarse"}, "has no head 'coarse' that classifies; it has main"),
    ],
)
def test_heads_that_are_not_there_are_refused(checkpoints, tmp_path, arch, asked, message):
    with pytest.raises(RobenchError, match=message):
        attacked(checkpoints[arch], tmp_path / "run", "pgd7", **asked)


def stored(content, tmp_path, dataset, n=None):
    path = tmp_path / "images.pt"
    torch.save(content, path)
    return external_column(str(path), dataset, n or len(dataset))


@pytest.fixture
def gray():
    images, labels = brightness_data(OFFSETS)
    return Dataset("gray", "test", (images * 255).round().to(torch.uint8), labels, ("dark", "bright"))


@pytest.mark.parametrize(
    "layout",
    [
        lambda x, y: x,
        lambda x, y: (x, y),
        lambda x, y: {"adv_inputs": x, "labels": y, "save_type": "float"},  # torchattacks
        lambda x, y: {"adv_inputs": (x * 255).round().to(torch.uint8), "labels": y, "save_type": "int"},
        lambda x, y: {"adv_complete": x},  # AutoAttack's example script
    ],
)
def test_stored_images_are_judged_like_crafted_ones(layout, gray, tmp_path):
    images = gray.images / 255
    adv_images = ((images - 0.1).clamp(0, 1) * 255).ceil() / 255
    suite = stored(layout(adv_images, gray.labels), tmp_path, gray)
    results = run(tmp_path / "run", [suite])
    assert outcomes(results, "adv@images") == outcomes(run(tmp_path / "own", [column("darken", darken)]), "darken")


def test_stored_images_outside_the_ball_are_invalid(gray, tmp_path):
    results = run(tmp_path / "run", [stored(gray.images / 255 - 0.2, tmp_path, gray)])
    assert Outcome.INVALID in outcomes(results, "adv@images").values() and "outside the ball" in " ".join(results.ledger["message"])


class Malicious:
    def __reduce__(self):
        return print, ("this was run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.rand(10, 3, 8, 8), r"images of shape \(3, 8, 8\), gray has \(3, 4, 4\)"),
        (torch.rand(5, 3, 4, 4), "has 5 images for 10 samples; use `n=5`"),
        ({"adv_inputs": torch.rand(10, 3, 4, 4), "labels": torch.zeros(10)}, "10 of its first 10 labels are not those of gray"),
        ({"adv_inputs": torch.rand(10, 3, 4, 4), "labels": torch.zeros(4)}, r"labels of shape \(4,\) for 10 images, expected one"),
        ({"adv_inputs": torch.rand(10, 3, 4, 4), "labels": torch.zeros(10, 1)}, r"labels of shape \(10, 1\) for 10 images"),
        ({"weights": torch.rand(3)}, "has the entries weights; images are looked for in"),
        ([1, 2], "holds int, expected images"),
        (Malicious(), "robench runs no code from such files"),
    ],
)
def test_files_that_hold_no_such_images_are_refused(content, message, gray, tmp_path, capsys):
    with pytest.raises(RobenchError, match=message):
        stored(content, tmp_path, gray)
    assert "this was run" not in capsys.readouterr().out


def test_truncated_and_missing_files_are_refused(gray, tmp_path):
    torch.save(torch.rand(10, 3, 4, 4), tmp_path / "images.pt")
    (tmp_path / "images.pt").write_bytes((tmp_path / "images.pt").read_bytes()[:300])
    with pytest.raises(RobenchError, match="cannot be read as plain tensors"):
        external_column(str(tmp_path / "images.pt"), gray, 10)
    (tmp_path / "images.safetensors").write_bytes(b"too short")
    with pytest.raises(RobenchError, match="cannot be read as plain tensors"):
        external_column(str(tmp_path / "images.safetensors"), gray, 10)
    with pytest.raises(RobenchError, match="no such file; expected a .pt file of images"):
        external_column(str(tmp_path / "gone.pt"), gray, 10)


def test_kept_images_are_small_and_come_back_inside_the_ball(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 8, 8), generator=generator) / 255
    threat = ThreatModel("Linf", 8 / 255)
    for delta in (torch.rand(images.shape, generator=generator) * 2 - 1, torch.ones_like(images)):
        adv_images = (images + threat.eps * delta).clamp(0, 1)
        packed = pack(images, adv_images, np.arange(50), np.full(50, "returned"), threat, lambda x: x.flatten(1).argmax(1))
        (tmp_path / "packed.npz").write_bytes(packed.to_bytes())
        again = read_packed(tmp_path / "packed.npz").unpack()
        assert threat.contains(images, again).all() and (again - adv_images).abs().max() <= 1 / 65535
    assert packed.levels.dtype == np.uint16 and not len(packed.exact)  # two bytes a pixel before compression
    assert torch.equal(again, (images + threat.eps).clamp(0, 1)) or (again - adv_images).abs().max() < 1e-7


def test_sparse_images_on_the_surface_of_an_l1_ball_come_back_inside_it_in_16_bits():
    generator, threat = torch.Generator().manual_seed(0), ThreatModel("L1", 4)
    images = torch.randint(0, 256, (50, 3, 8, 8), generator=generator) / 255
    noise = torch.rand(images.shape, generator=generator) * (torch.rand(images.shape, generator=generator) < 0.1)
    toward_the_middle = noise * (0.5 - images).sign()
    adv_images = images + toward_the_middle * (4 / toward_the_middle.abs().flatten(1).sum(1)).clamp(max=1).view(-1, 1, 1, 1)
    packed = pack(images, adv_images, np.arange(50), np.full(50, "returned"), threat, lambda x: x.flatten(1).argmax(1))
    assert threat.distance(images, adv_images).max() > 3.9999 and not len(packed.exact)
    assert (threat.distance(images, packed.unpack()) <= 4).all()


def test_an_image_whose_verdict_hangs_on_the_last_bits_is_kept_whole():
    images = torch.full((2, 1, 2, 2), 0.6)
    adv_images = images + torch.tensor([1e-6, 3e-2]).view(2, 1, 1, 1)
    packed = pack(
        images,
        adv_images,
        np.arange(2),
        np.full(2, "returned"),
        ThreatModel("Linf", 0.1),
        lambda x: (x.mean((1, 2, 3)) > 0.6000005).long(),
    )
    assert packed.exact_rows.tolist() == [0]
    assert torch.equal(packed.unpack()[0], adv_images[0])


@pytest.mark.slow
def test_kept_images_of_one_run_are_the_transfer_attack_of_another(checkpoints, tmp_path):
    source = attacked(checkpoints["single"], tmp_path / "source", "pgd7", save_adv=True)
    crafted = table(attacked(checkpoints["contrastive"], tmp_path / "crafted", f"pgd7@{checkpoints['single']}"))
    stored_run = table(attacked(checkpoints["contrastive"], tmp_path / "stored", None, adv=(f"{source}:pgd7",)))
    assert list(stored_run.index) == ["clean", "pgd7@single", "union"]
    # Not the same random draws: a run crafts on the samples that its model gets right, and on the others in a second call.
    assert stored_run.loc["pgd7@single", "robust_accuracy"] == pytest.approx(crafted.loc["pgd7@single", "robust_accuracy"], abs=0.1)
    with pytest.raises(RobenchError, match="has no attack 'pgd50'; with images: pgd7"):
        attacked(checkpoints["contrastive"], tmp_path / "stored", None, adv=(f"{source}:pgd50",))
    with pytest.raises(RobenchError, match="images for 40 of 50 samples|images for 30 of 50 samples"):
        attacked(checkpoints["contrastive"], tmp_path / "more", None, n=50, adv=(f"{source}:pgd7",))


@pytest.fixture
def kept(checkpoints, tmp_path):
    return attacked(checkpoints["single"], tmp_path / "run", "pgd7,autoattack-screened", save_adv=True)


def test_verify_sees_every_broken_sample_again(kept, checkpoints):
    replays, changed = verify(kept, ckpt=checkpoints["single"], threads=1)
    assert not changed and all(each.holds for each in replays)
    claimed = {each.attack: each.claimed for each in replays}
    assert claimed["pgd7"] == table(kept).loc["pgd7", "best_broken"] > 0
    assert sum(claimed.values()) == sum(each.single for each in replays) == sum(each.float64 for each in replays)


@pytest.mark.slow
def test_saving_images_changes_no_verdict(kept, checkpoints, tmp_path):
    plain = attacked(checkpoints["single"], tmp_path / "plain", "pgd7,autoattack-screened")
    assert (plain / "verdicts.csv").read_bytes() == (kept / "verdicts.csv").read_bytes()
    attacked(checkpoints["single"], plain, "pgd7,autoattack-screened", save_adv=True)  # asked for later, they are made
    assert all(each.holds for each in verify(plain, threads=1)[0])
    assert (plain / "verdicts.csv").read_bytes() == (kept / "verdicts.csv").read_bytes()


def images_of(run_folder, attack_name):
    return next(path for path in (run_folder / "adv").rglob("*.npz") if attack_name in str(path))


def test_verify_catches_a_tampered_image(kept):
    path = images_of(kept, "pgd7")
    packed = read_packed(path)
    levels = packed.levels.copy()
    levels[0, 0, 0, 0] ^= 1  # one pixel by 1/65535
    path.write_bytes(replace(packed, levels=levels).to_bytes())
    (found,) = [each for each in verify(kept, threads=1)[0] if each.attack == "pgd7"]
    assert found.tampered == 1 and not found.holds


@pytest.mark.slow
def test_verify_catches_a_changed_weight(kept, checkpoints, tmp_path):
    from robench.checkpoint import save_checkpoint

    checkpoint = load_checkpoint(checkpoints["single"])
    weights = dict(checkpoint.weights)
    weights["heads.main.bias"] = weights["heads.main.bias"] + 1e-6
    changed = tmp_path / "changed.safetensors"
    save_checkpoint(changed, replace(checkpoint, weights=weights))
    replays, difference = verify(kept, ckpt=changed, threads=1)
    assert "the run attacked" in difference and all(each.holds for each in replays)


def test_verify_catches_an_image_that_is_not_adversarial_for_these_weights(kept, checkpoints):
    replays, difference = verify(kept, ckpt=checkpoints["contrastive"], threads=1)
    assert difference and not all(each.holds for each in replays)


def test_verify_needs_kept_images(checkpoints, tmp_path):
    with pytest.raises(RobenchError, match="has no stored adversarial images; run the same `robench attack --save-adv` first"):
        verify(attacked(checkpoints["single"], tmp_path / "run", "pgd7"), threads=1)


@pytest.mark.slow
def test_missing_images_are_made_again(kept, checkpoints):
    images_of(kept, "pgd7").unlink()
    before = (kept / "verdicts.csv").read_bytes()
    assert not all(each.holds for each in verify(kept, threads=1)[0])
    attacked(checkpoints["single"], kept, "pgd7,autoattack-screened", save_adv=True)
    assert all(each.holds for each in verify(kept, threads=1)[0]) and (kept / "verdicts.csv").read_bytes() == before


@pytest.mark.slow
def test_asking_for_images_of_a_finished_cascade_and_interrupting_takes_nothing_away(kept, checkpoints, tmp_path):
    plain = attacked(checkpoints["single"], tmp_path / "plain", "autoattack-screened")
    before = (plain / "verdicts.csv").read_bytes()
    files = sorted((plain / "chunks").rglob("*.npz"))
    subject = classifier_of_checkpoint(checkpoints["single"], None, "cpu")

    def interrupted(*_):
        raise KeyboardInterrupt

    subject.classifier.module.forward = interrupted
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("robench.models.subject.classifier_of_checkpoint", lambda *_: subject)
        attacked(checkpoints["single"], plain, "autoattack-screened", save_adv=True)
    assert sorted((plain / "chunks").rglob("*.npz")) == files
    write_report(plain)
    assert (plain / "verdicts.csv").read_bytes() == before


def test_columns_of_one_name_are_refused(checkpoints, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    (tmp_path / "x" / "m.safetensors").write_bytes(checkpoints["supervised"].read_bytes())
    (tmp_path / "y" / "m.safetensors").write_bytes(checkpoints["contrastive"].read_bytes())
    first, second = (f"pgd2@{tmp_path / folder / 'm.safetensors'}" for folder in ("x", "y"))
    with pytest.raises(RobenchError, match="two columns would be called 'pgd2@m'; rename one of the checkpoints"):
        attacked(checkpoints["single"], tmp_path / "run", f"{first},{second}")
    run_folder = attacked(checkpoints["single"], tmp_path / "run", first)
    before = (run_folder / "verdicts.csv").read_bytes()
    with pytest.raises(RobenchError, match="has a column 'pgd2@m' already, of other weights; choose another `out`"):
        attacked(checkpoints["single"], run_folder, second)
    assert (run_folder / "verdicts.csv").read_bytes() == before
    files = []
    for folder in ("x", "y"):
        files.append(str(tmp_path / folder / "images.pt"))
        torch.save(torch.rand(30, 3, 32, 32), files[-1])
    with pytest.raises(RobenchError, match="two columns would be called 'adv@images'"):
        attacked(checkpoints["single"], tmp_path / "stored", None, adv=tuple(files))


def test_one_invalid_image_takes_no_other_image_away(tmp_path):
    def one_is_nan(model, images, labels, threat, seed):
        adv_images = darken(model, images, labels, threat, seed)
        adv_images[0] = float("nan")
        return adv_images

    results = run(tmp_path, [column("nan", one_is_nan)], spec=replace(SPEC, chunk=10), save=True)
    (file,) = (tmp_path / "adv").rglob("*.npz")
    found = outcomes(results, "nan")
    (invalid,) = [index for index, outcome in found.items() if outcome == Outcome.INVALID]
    broken = {index for index, outcome in found.items() if outcome == Outcome.BROKEN}
    assert broken and broken <= set(read_packed(file).index.tolist()) and invalid not in read_packed(file).index


def test_images_are_crafted_on_a_chunk_that_is_all_misclassified(tmp_path):
    results = run(tmp_path, [column("darken", darken)], offsets=[0.2, 0.04, -0.2, -0.3], spec=replace(SPEC, chunk=2), save=True)
    packed = read_packed(next(path for path in (tmp_path / "adv").rglob("0000002-0000004.npz")))
    assert packed.index.tolist() == [2, 3] and list(outcomes(results, "darken").values())[2:] == [Outcome.MISCLASSIFIED] * 2


def test_a_stage_that_is_tried_again_without_keeping_images_leaves_no_old_ones(tmp_path):
    suite = column("darken", darken)
    run(tmp_path, [suite], spec=replace(SPEC, chunk=10), save=True)
    (chunk,) = [path for path in (tmp_path / "chunks").rglob("*.npz") if "darken" in str(path)]
    chunk.unlink()
    run(tmp_path, [suite], spec=replace(SPEC, chunk=10))
    assert not list((tmp_path / "adv").rglob("*.npz"))


def test_a_source_of_other_classes_is_refused(checkpoints, tmp_path):
    import robench

    images, labels = torch.rand(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 3))
    with pytest.raises(RobenchError, match="that model has 10 classes, the one under test 3"):
        robench.evaluate(model, images, labels, suite=f"pgd2@{checkpoints['single']}")


@pytest.mark.slow
def test_stored_images_are_evaluated_on_more_samples_later(checkpoints, tmp_path):
    source = attacked(checkpoints["single"], tmp_path / "source", "pgd2", save_adv=True)
    for n in (20, 30):
        folder = attacked(checkpoints["contrastive"], tmp_path / "run", None, n=n, adv=(f"{source}:pgd2",))
    assert table(folder).loc["pgd2@single", "n"] == 30


def test_images_asked_for_later_are_crafted_on_chunks_that_are_all_misclassified(tmp_path):
    for save in (False, True):
        run(tmp_path, [column("darken", darken)], offsets=[0.2, 0.04, -0.2, -0.3], spec=replace(SPEC, chunk=2), save=save)
    assert read_packed(next((tmp_path / "adv").rglob("0000002-0000004.npz"))).index.tolist() == [2, 3]


@pytest.mark.slow
def test_python_crafts_on_the_judged_head_where_no_other_is_named(checkpoints, tmp_path):
    unnamed, named = (
        attacked(checkpoints["supervised"], tmp_path / str(k), "pgd7", head="coarse", **more)
        for k, more in enumerate([{}, {"attack_heads": "coarse"}])
    )
    assert list(table(unnamed).index) == ["clean", "pgd7", "union"]  # and not pgd7(heads=main)
    assert table(unnamed)["broken"].equals(table(named)["broken"])


@pytest.mark.slow
def test_a_surrogate_learns_images_of_any_number_of_channels(tmp_path):
    from robench.audit.surrogate import surrogate_attack

    model, images, labels, _ = linear_case(0.02, "Linf", shape=(1, 12, 12))
    data = Dataset("gray", "test", images, labels, tuple("abcdefghij"))
    subject = Subject("gray", Classifier(model, 10), "0", {})
    first = surrogate_attack(subject, data, ThreatModel("Linf", 0.02), tmp_path / "surrogate.safetensors", 0)
    again = surrogate_attack(subject, data, ThreatModel("Linf", 0.02), tmp_path / "surrogate.safetensors", 0)
    crafted = []
    for attack_of in (first, again):  # the second reads the first one's weights
        with seeded(0, images.device):
            crafted.append(attack_of.fn(subject.classifier, images, labels, ThreatModel("Linf", 0.02), 0))
    assert crafted[0].shape == images.shape and torch.equal(*crafted)
