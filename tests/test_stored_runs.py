"""Runs on pictures that are read when they are needed: the same verdicts as from a tensor, whoever computes, killed or not."""

import pickle
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from test_pictures import photographs, picture

from robench.attacks import parse_columns
from robench.cli import main
from robench.data import load_dataset
from robench.data.chosen import chosen_samples
from robench.evaluation.cluster import Assignment, Cluster, _task
from robench.evaluation.engine import ColumnGroup, Job, evaluate_columns
from robench.evaluation.read_ahead import KEPT, ReadAhead
from robench.evaluation.run_folder import Chunk, read_chunk, split
from robench.types import Dataset, ExternalData, ThreatModel, pixels_of

MODEL = """
import torch
from torch import nn

def make(n_classes=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 2))
"""
READ = ("--resize", "16", "--crop", "14")
ASKED = ("--suite", "fgsm,pgd7", "--eps", "24/255", "--batch-size", "6")


def robench(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)


def attack(out, *more):
    given = ("attack", "--model", "mine.py:make", "--dataset", "photos", *READ, *ASKED, "--out", out, *more)
    done = robench(*given)
    assert done.exit_code == 0, done.output
    return verdicts(out)


def verdicts(out):
    table = pd.read_csv(Path(out) / "verdicts.csv")
    return table[["attack", "index", "label", "outcome", "adv_pred", "distance", "margin"]]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODEL)
    photographs(tmp_path / "photos" / "test", per_class=10)
    return load_dataset(ExternalData("photos", resize="16", crop="14"))


@pytest.fixture
def one_tensor(photos):
    """The verdicts of the same pixels in one array."""
    np.savez("photos.npz", images=photos.pixels(slice(None)).numpy(), labels=photos.labels.numpy())
    assert robench("attack", "--model", "mine.py:make", "--dataset", "photos.npz", *ASKED, "--out", "held").exit_code == 0
    return verdicts("held")


def test_the_verdicts_are_those_of_the_same_pixels_in_one_tensor(photos, one_tensor):
    pd.testing.assert_frame_equal(attack("stored", "--save-adv"), one_tensor)
    assert {"robust", "broken"} <= set(one_tensor["outcome"]) | {"misclassified"}
    described = Path("stored/run.json").read_text()
    assert '"preprocessing": "short side to 16 (bilinear), then the centre 14x14"' in described
    confirmed = robench("verify", "stored", "--trust")
    assert confirmed.exit_code == 0, confirmed.output
    exported = robench("export", "stored", "--format", "adv", "--attack", "pgd7")
    assert exported.exit_code == 0, exported.output
    assert robench("export", "stored", "--format", "model-card").exit_code == 0
    assert (
        "of photos (short side to 16 (bilinear), then the centre 14x14); measured"
        in Path("stored/export/model-card.md").read_text()
    )
    again = robench(
        "attack", "--model", "mine.py:make", "--dataset", "photos", *ASKED, *READ, "--adv", "stored:pgd7", "--out", "more"
    )
    assert again.exit_code == 0, again.output


def test_a_run_goes_on_where_it_was_interrupted(photos, one_tensor, monkeypatch):
    from robench.data.picture_files import PictureFiles

    read, seen = PictureFiles.read, []

    def interrupted(images, places):
        seen.append(places)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return read(images, places)

    with monkeypatch.context() as patched:
        patched.setattr(PictureFiles, "read", interrupted)
        done = CliRunner().invoke(
            main, ["attack", "--model", "mine.py:make", "--dataset", "photos", *READ, *ASKED, "--out", "stored"]
        )
        assert done.exit_code not in (0, None) and 0 < len(list(Path("stored").rglob("*.npz"))) < 12
    pd.testing.assert_frame_equal(attack("stored"), one_tensor)


def test_another_preprocessing_is_another_run(photos):
    attack("stored")
    done = robench(
        "attack", "--model", "mine.py:make", "--dataset", "photos", "--resize", "17", "--crop", "14", *ASKED, "--out", "stored"
    )
    assert done.exit_code == 1 and "holds another run" in done.output


def test_a_run_on_other_data_is_named_with_its_pictures(photos):
    attack("stored", "-n", "6")
    np.savez("other.npz", images=photos.pixels(slice(None)).numpy(), labels=photos.labels.numpy())
    done = robench("attack", "--model", "mine.py:make", "--dataset", "other.npz", *ASKED, "--out", "stored")
    assert done.exit_code == 1
    assert " there (photos, 20 samples, short side to 16 (bilinear), then the centre 14x14) and " in done.output


def test_samples_that_show_few_classes_are_told(photos):
    from robench.run.inputs import few_classes

    assert not few_classes(photos, 20) and not few_classes(photos, 2)
    in_order = replace(photos, labels=torch.arange(20) // 10, images=photos.pixels(slice(None)))
    assert few_classes(in_order, 5) == [
        "the first 5 samples show 1 of 2 classes; the samples are sorted by class: shuffle them, or take all"
    ]
    one_each = torch.zeros(200, 3, 1, 1, dtype=torch.uint8), torch.arange(200), tuple(map(str, range(200)))
    many = Dataset("many", "test", *one_each)
    assert few_classes(many, 12) == ["the first 12 samples show 12 of 200 classes"] and not few_classes(many, 200)


def test_chunks_of_large_images_are_smaller_on_a_cpu():
    from robench.evaluation.chunk_size import chunk_on_cpu

    assert [chunk_on_cpu(shape) for shape in ((3, 32, 32), (3, 96, 96), (3, 128, 128), (1, 224, 224), (3, 224, 224))] == [
        250,
        250,
        50,
        50,
        50,
    ]


def test_samples_are_the_first_n_and_a_run_is_extended(photos, one_tensor):
    first = attack("stored", "-n", "12")
    assert len(first) == 3 * 12
    pd.testing.assert_frame_equal(attack("stored"), one_tensor)


class Counted:
    """Stored images that note what was read, and how many chunks are held at a time."""

    def __init__(self, images):
        self.images, self.shape, self.reads = images, images.shape, []

    def __len__(self):
        return len(self.images)

    def read(self, places):
        self.reads.append((places[0], len(places)))
        return self.images[list(places)]


def test_the_next_chunk_is_read_while_this_one_is_attacked_and_none_twice_in_a_row():
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 2, 2).contiguous()
    stored, chunks = Counted(images), split(40, 10)
    ahead = ReadAhead(stored)
    assert torch.equal(ahead.pixels(chunks[0]), images[:10])
    ahead.expect(chunks[1])
    assert torch.equal(ahead.pixels(chunks[1]), images[10:20]) and torch.equal(ahead.pixels(chunks[0]), images[:10])
    assert stored.reads == [(0, 10), (10, 10)]
    ahead.expect(chunks[2])
    assert len(ahead._chunks) == KEPT and torch.equal(ahead.pixels(chunks[2]), images[20:30])
    ahead.close()
    assert stored.reads == [(0, 10), (10, 10), (20, 10)]


def test_the_read_ahead_happens_during_the_attack(photos, tmp_path):
    """An attack on chunk 0 waits until chunk 1 has been read, which nobody does before it has ended."""
    read_second, classifier, threat = threading.Event(), subject(), ThreatModel("Linf", 2 / 255)

    class Waited(Counted):
        def read(self, places):
            if places[0] == 10:
                read_second.set()
            return super().read(places)

    def patient(model, images, labels, threat, seed):
        assert read_second.wait(20)
        return images

    from test_engine import column

    folder = run_folder(tmp_path / "run", 10)
    stored = Waited(photos.pixels(slice(None)))
    evaluate_columns(
        classifier, stored, photos.labels, [column("patient", patient)], threat=threat, folder=folder, show_progress=False
    )
    outcomes = [set(read_chunk(path).outcome) for path in folder.path.rglob("chunks/patient*/*.npz")]
    assert len(outcomes) == 2 and not any("error" in each for each in outcomes)


def subject():
    from robench.models.classifier import Classifier

    namespace = {}
    exec(MODEL, namespace)
    return Classifier(namespace["make"]().eval(), 2)


def run_folder(path, chunk):
    from robench.evaluation.run_folder import RunFolder
    from robench.types import RunSpec

    return RunFolder(path, RunSpec(model="m", data="d", norm="Linf", eps=2 / 255, seed=0, chunk=chunk, device_type="cpu"))


def test_a_ray_task_reads_its_own_chunk_and_asks_for_pixels_where_it_cannot(photos):
    threat = ThreatModel("Linf", 2 / 255)
    job, chunk, cluster = Job(subject(), threat, 0), Chunk(6, 12), Cluster("cpu", 1, 1)
    pixels, labels = pixels_of(photos.images, slice(6, 12)), photos.labels[6:12]
    groups = [ColumnGroup(()), *(ColumnGroup((column,)) for column in parse_columns("pgd7", threat, 2))]
    (clean,) = _task((job, groups, photos.images), Assignment(0, None, labels, chunk, {}), cluster)
    for group, finished in ((0, {}), (1, {"clean": clean.verdicts})):
        own = _task((job, groups, photos.images), Assignment(group, None, labels, chunk, finished), cluster)
        sent = _task((job, groups, None), Assignment(group, pixels, labels, chunk, finished), cluster)
        for one, two in zip(own, sent, strict=True):
            assert np.array_equal(one.verdicts.outcome, two.verdicts.outcome)
            assert np.array_equal(one.verdicts.margin, two.verdicts.margin, equal_nan=True)
    Path("photos").rename("gone")
    assert _task((job, groups, photos.images), Assignment(0, None, labels, chunk, {}), cluster) is None
    assert _task((job, groups, photos.images), Assignment(0, pixels, labels, chunk, {}), cluster) is not None


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["a shared folder", "no shared folder"])
def test_ray_ends_with_the_same_table(photos, one_tensor, monkeypatch, shared):
    pytest.importorskip("ray", reason="needs Ray: pip install 'robench[ray]'")
    if not shared:
        from robench.data.picture_files import PictureFiles

        monkeypatch.setattr(PictureFiles, "is_here", lambda images: False)
        import ray

        import robench.data.picture_files as module

        ray.cloudpickle.register_pickle_by_value(module)
    done = robench("attack", "--model", "mine.py:make", "--dataset", "photos", *READ, *ASKED, "--out", "far", "--ray")
    assert done.exit_code == 0, done.output
    pd.testing.assert_frame_equal(verdicts("far"), one_tensor)
    assert ("a worker does not see" in done.stderr) == (not shared)


@pytest.mark.slow
def test_ranks_of_torchrun_read_their_own_chunks(photos, one_tensor):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "robench"]
    given = ["attack", "--model", "mine.py:make", "--dataset", "photos", *READ, *ASKED, "--out", "ranks"]
    done = subprocess.run([*launch, *given], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    pd.testing.assert_frame_equal(verdicts("ranks"), one_tensor)


PEAK = """
import resource, sys, torch
from robench.data import load_dataset
from robench.types import ExternalData
from robench import evaluate
from torch import nn
import warnings
warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3 * 14 * 14, 2))
data = load_dataset(ExternalData(sys.argv[1], resize="256", crop="224"))
evaluate(model, dataset=data, suite="fgsm", batch_size=50, n=int(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    """2,000 JPEGs of 500x375 are 287 MiB of pixels at 224x224, and 1.1 GiB of floats; a chunk of 50 has 7 and 29 MiB."""
    root = tmp_path / "photos" / "test"
    photographs(root, per_class=1, sizes=((375, 500), (500, 375)))
    for label, name in enumerate(("ant", "bee")):
        first, second = ((root / name / "0000.jpg").read_bytes(), picture(7 + label, (500, 375)))
        second.save(tmp_path / "other.jpg")
        for place in range(1, 1000):
            (root / name / f"{place:04}.jpg").write_bytes(first if place % 2 else (tmp_path / "other.jpg").read_bytes())

    def peak(n):
        done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / "photos"), str(n)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return int(re.findall(r"\d+", done.stdout)[-1])

    few, all_of_them = peak(200), peak(2000)
    assert all_of_them - few < 60, f"{few} MiB for 200 pictures, {all_of_them} MiB for 2,000"


def test_chosen_pictures_are_those_of_the_split_in_their_order_and_have_a_digest_of_their_own(photos):
    places = torch.tensor([7, 0, 19, 3])
    part = chosen_samples(photos, places)
    assert part.is_stored and len(part) == len(part.images) == 4 and part.image_shape == photos.image_shape
    again = pickle.loads(pickle.dumps(part.images))
    assert torch.equal(pixels_of(again, slice(1, 4)), photos.pixels(places[1:]))
    assert torch.equal(part.pixels(torch.tensor([3, 1])), photos.pixels(places[[3, 1]]))
    assert torch.equal(part.labels, photos.labels[places])
    assert again.name(2) == photos.images.name(19) and again.is_here()
    others = [photos, chosen_samples(photos, places.flip(0)), chosen_samples(photos, places[:3])]
    assert part.images.digest == again.digest and part.images.digest not in [each.images.digest for each in others]
    held = replace(photos, images=photos.pixels(slice(None)), coarse_labels=photos.labels)
    assert torch.equal(chosen_samples(held, places).images, part.pixels(slice(None)))
    assert torch.equal(chosen_samples(held, places).coarse_labels, photos.labels[places])
