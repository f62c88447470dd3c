"""Our ``autoattack`` against the authors' own driver, sample by sample."""

import pytest
import torch
from cases import described
from torch import nn

from robench.attacks import parse_columns
from robench.evaluation.engine import evaluate_columns
from robench.evaluation.results import read_results
from robench.evaluation.run_folder import Chunk, RunFolder, chunk_seed
from robench.models.classifier import Classifier
from robench.models.seeded import seeded
from robench.types import Outcome, RunSpec, ThreatModel

# At these radii the network below keeps about half of its samples.
THREAT = ThreatModel("Linf", 0.12)
SPARSE = ThreatModel("L1", 6)  # on 8x8 pixels, which spares its projection most of the time


@pytest.fixture(scope="module")
def network(digits_train):
    """A small network that was trained on slightly adversarial digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    images, labels = digits_train.images.float() / 255, digits_train.labels
    for step in range(200):
        batch = slice(step * 100 % 1300, step * 100 % 1300 + 100)
        adv_images = images[batch].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(adv_images), labels[batch]), adv_images)
        loss = nn.functional.cross_entropy(model((adv_images + 0.1 * gradient.sign()).detach().clamp(0, 1)), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Classifier(model, 10)


def spec_of(threat, chunk):
    return RunSpec(model="m", data="d", norm=threat.norm, eps=threat.eps, seed=11, chunk=chunk, device_type="cpu")


def shrunk(network, images):
    """The same network and digits on the 8x8 pixels that were blown up to 32x32."""
    return Classifier(nn.Sequential(*list(network.module)[1:]), 10), images[:, :, ::4, ::4].contiguous()


def by_the_authors(classifier, images, labels, seed, threat=THREAT):
    """Which samples survive the authors' run_standard_evaluation on one batch."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(classifier, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device="cpu")
    with torch.random.fork_rng(devices=[]):
        adv_images, _ = attack.run_standard_evaluation(images.clone(), labels.clone(), batch_size=len(images))
    return classifier(adv_images).argmax(1) == labels, adv_images


@pytest.mark.slow
@pytest.mark.parametrize(("threat", "n"), [(THREAT, 24), (SPARSE, 6)], ids=str)
def test_verdicts_equal_the_authors_sample_by_sample(network, digits_test, tmp_path, threat, n):
    images, labels = digits_test.images[:n], digits_test.labels[:n]
    if threat == SPARSE:
        network, images = shrunk(network, images)
    suites = parse_columns("autoattack", threat, 10)
    folder = RunFolder(tmp_path / "run", spec_of(threat, n))
    evaluate_columns(network, images, labels, suites, threat=threat, folder=folder, show_progress=False)
    ours = [outcome == Outcome.ROBUST for outcome in read_outcomes(folder, suites, n)]
    survived, adv_images = by_the_authors(network, images.float() / 255, labels, chunk_seed(11, "autoattack", Chunk(0, n)), threat)
    assert 0.2 <= survived.float().mean() <= 0.8
    assert ours == survived.tolist()
    results = read_results(folder.path)
    stage = results.verdicts[results.verdicts["attack"] == "autoattack/apgd-ce"].set_index("index")["outcome"]
    shown = results.examples["autoattack/apgd-ce"]
    broken = (stage.loc[shown.index] == Outcome.BROKEN).to_numpy()  # of the others, the authors hand on what a later stage found
    index, stored = torch.from_numpy(shown.index[broken]), torch.from_numpy(shown.adv[broken])
    assert len(index) > 1
    assert torch.equal(stored, adv_images[index])  # the same images, bit for bit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "threat", "n"),
    [*((stage, ThreatModel("Linf", 0.18), 6) for stage in ("apgd-ce", "apgd-t", "fab-t")), ("fab-t", SPARSE, 4)],
    ids=str,
)
def test_calls_that_are_cut_short_and_calls_that_are_not_have_the_authors_verdicts(
    network, digits_test, tmp_path, stage, threat, n
):
    """In chunks of one sample: some are decided early and some never."""
    from pyautoattack import AutoAttack

    size = 1
    images, labels = digits_test.images[:n], digits_test.labels[:n]
    if threat == SPARSE:
        network, images = shrunk(network, images)
    suites = parse_columns(stage, threat, 10)
    folder = RunFolder(tmp_path / "run", spec_of(threat, size))
    evaluate_columns(network, images, labels, suites, threat=threat, folder=folder, show_progress=False)
    ours = [outcome == Outcome.ROBUST for outcome in read_outcomes(folder, suites, n)]
    expected, passes = [], []
    for start in range(0, n, size):
        chunk = Chunk(start, start + size)
        theirs = AutoAttack(
            network, norm=threat.norm, eps=threat.eps, seed=chunk_seed(11, "autoattack", chunk), version="standard", device="cpu"
        )
        theirs.attacks_to_run = [stage]
        own = images[start : start + size].float() / 255, labels[start : start + size]
        with torch.random.fork_rng(devices=[]), network.counting() as counted:
            adv_images, _ = theirs.run_standard_evaluation(own[0].clone(), own[1].clone(), batch_size=size)
        passes.append(counted.backwards)
        expected += (network(adv_images).argmax(1) == own[1]).tolist()
    assert ours == expected
    spent = read_results(folder.path).ledger.set_index(["attack", "chunk"]).loc[stage, "backwards"]
    cut = [mine < whole / 2 for mine, whole in zip(spent, passes, strict=True) if whole]
    assert any(cut) and not all(cut)


def read_outcomes(folder, suites, n):
    from robench.evaluation.run_folder import attack_folder

    columns = [
        {
            "name": suite.name,
            "cascade": suite.is_cascade,
            "members": [{"name": member.name, "folder": attack_folder(suite, member)} for member in suite.stages],
        }
        for suite in suites
    ]
    folder.describe(described(n, columns))
    verdicts = read_results(folder.path).verdicts
    return verdicts[verdicts["attack"] == suites[0].name]["outcome"].tolist()


@pytest.mark.slow
def test_each_stage_alone_equals_the_authors_and_breaks_something(network, digits_test):
    from pyautoattack import AutoAttack

    images, labels = digits_test.images[:8].float() / 255, digits_test.labels[:8]
    for suite in parse_columns("apgd-ce,apgd-t,fab-t", THREAT, 10):
        theirs = AutoAttack(network, norm=THREAT.norm, eps=THREAT.eps, seed=3, version="standard", device="cpu")
        theirs.attacks_to_run = [suite.name]
        with torch.random.fork_rng(devices=[]):
            expected, _ = theirs.run_standard_evaluation(images.clone(), labels.clone(), batch_size=8)
        correct = network(images).argmax(1) == labels
        with seeded(3, images.device):
            ours = suite.stages[0].fn(network, images[correct], labels[correct], THREAT, 3)
        broken = network(ours).argmax(1) != labels[correct]
        assert broken.any(), suite.name
        assert torch.equal(ours[broken], expected[correct][broken])
        assert torch.equal(broken, network(expected[correct]).argmax(1) != labels[correct])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["apgd-ce", "apgd-t", "fab-t"])
def test_a_stage_in_l1_is_the_authors_standard_to_the_last_pass(network, digits_test, stage):
    """Starts and target classes differ from those in the other norms; a sample that withstands all shows how many there are."""
    from pyautoattack import AutoAttack

    small = ThreatModel("L1", 0.5)
    network, images = shrunk(network, digits_test.images[:2].float() / 255)
    labels = digits_test.labels[:2]
    theirs = AutoAttack(network, norm="L1", eps=small.eps, seed=3, version="standard", device="cpu")
    theirs.fab.targeted = True
    attack = {"apgd-ce": theirs.apgd, "apgd-t": theirs.apgd_targeted, "fab-t": theirs.fab}[stage]
    with torch.random.fork_rng(devices=[]), network.counting() as expected:
        adv_images = attack.perturb(images.clone(), labels.clone())
    (suite,) = parse_columns(stage, small, 10)
    with network.counting() as spent:
        ours = suite.stages[0].fn(network, images, labels, small, 3)
    assert torch.equal(ours, adv_images) and (network(ours).argmax(1) == labels).any()
    assert (spent.forwards, spent.backwards) == (expected.forwards, expected.backwards)
