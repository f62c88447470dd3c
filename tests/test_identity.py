"""Who a column's attack is: the types hold all that run.json says of it, and write the very same again."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cases import LINF, brightness_data, darken, fake
from make_attack_keys import FILE

from robench.attacks import parse_columns
from robench.attacks.crafting_targets import Heads, crafted_on, on_heads
from robench.audit.panel import rest
from robench.evaluation.external_images import external_column
from robench.evaluation.run_folder import attack_folder
from robench.identity import RESERVED, AttackIdentity, CraftedHeads, ImagesOfFile, ImagesOfRun, SourceModel
from robench.types import Attack, Column, Dataset, PassOptions

PINNED = json.loads(FILE.read_text())
OTHER = SimpleNamespace(name="other", digest="f" * 64, classifier=None)


def on_disk(params):
    return json.loads(json.dumps(params))


def written(stage):
    """A stage as run.json has it."""
    return on_disk({"name": stage.name, "params": dict(stage.params), "library": stage.library})


@pytest.mark.parametrize("asked", [asked for asked, means in PINNED.items() if isinstance(means, list)])
def test_what_is_pinned_of_every_registered_attack_and_suite_is_read_and_written_again(asked):
    for stage in PINNED[asked]:
        identity = AttackIdentity.from_params(stage["params"], stage["name"], stage["library"])
        assert json.dumps(identity.to_params()) == json.dumps(stage["params"])
        assert (str(identity.passes) == "own") == ("passes" not in stage["params"])
        assert not set(RESERVED) & identity.parameters.keys()


@pytest.mark.parametrize("suite", ["fgsm", "pgd20", "pgd50-margin", "noise", "fast", "autoattack", "square20000"])
def test_an_attack_and_its_stage_in_run_json_have_one_identity(suite):
    for column in parse_columns(suite, LINF, 10):
        for stage in column.stages:
            assert AttackIdentity.of_member(written(stage)) == stage.identity
            assert attack_folder(column, stage.identified(stage.identity)) == attack_folder(column, stage)


def test_a_transfer_is_crafted_on_a_model_with_a_name_and_a_digest():
    made = crafted_on(parse_columns("pgd20", LINF, 10)[0].stages[0], OTHER)
    assert list(made.params)[-1] == "transfer from" and made.params["transfer from"] == "f" * 64
    read = AttackIdentity.of_member(written(made))
    assert read == made.identity and read.crafted_on == SourceModel("other", "f" * 64) and read.steps == 20
    assert read.parameters == parse_columns("pgd20", LINF, 10)[0].stages[0].params


def test_heads_are_named_in_order_with_the_digest_of_their_weights(monkeypatch):
    monkeypatch.setattr(Heads, "digest", "a" * 64)
    (column,) = on_heads(parse_columns("pgd20", LINF, 10), "joint", Heads(None, ("main", "rotation"), {}, {}, {}))
    (made,) = column.stages
    assert list(made.params)[-2:] == ["heads", "weights"] and made.params["heads"] == ["main", "rotation"]
    read = AttackIdentity.of_member(written(made))
    assert read == made.identity and read.heads == CraftedHeads(("main", "rotation"), "a" * 64)
    assert made.name == column.name == "pgd20(heads=joint)"


def test_images_of_a_file_have_a_digest(tmp_path):
    images, labels = brightness_data([0.1, 0.2])
    torch.save(images, tmp_path / "kept.pt")
    (made,) = external_column(str(tmp_path / "kept.pt"), Dataset("gray", "test", images, labels, ("dark", "bright")), 2).stages
    assert list(made.params) == ["images"] and made.library == "stored images"
    read = AttackIdentity.of_member(written(made))
    assert read == made.identity and read.images == ImagesOfFile(made.params["images"]) and read.crafted_on is None


def test_images_of_a_run_name_that_run_and_its_folders():
    spec = {"model": "f" * 64, "eps": 0.1}
    params = {"transfer from": "f" * 64, "images": {"run": spec, "of": ["pgd20-0123456789"]}}
    read = AttackIdentity.from_params(params, "pgd20@other")
    assert read.images == ImagesOfRun(spec, ("pgd20-0123456789",)) and read.crafted_on == SourceModel("other", "f" * 64)
    assert json.dumps(read.to_params()) == json.dumps(params)


def test_what_an_audit_left_is_part_of_who_ran_on_it():
    broken = torch.tensor([True, False]).numpy()
    for stage in rest(LINF, 10, broken).stages:
        read = AttackIdentity.of_member(written(stage))
        assert read == stage.identity and read.left == stage.params["on what was left"] and "version" in read.parameters


@pytest.mark.parametrize(
    "params",
    [{"weights": "abc"}, {"heads": 3}, {"heads": "main", "weights": "a"}, {"images": 5}, {"images": {"run": {}}}, {"transfer from": None},
     {"passes": "bf16, folded"}, {"passes": "own"}, {"passes": ["folded"]}, {"passes version": 2}, {"passes": "folded", "passes version": 1},
     {"passes": "folded", "passes version": True}, {"on what was left": ""}],
)  # fmt: skip
def test_what_is_no_part_that_robench_writes_stays_a_parameter_and_is_not_lost(params):
    read = AttackIdentity.from_params({"steps": 3} | params, "mine")
    assert json.dumps(read.to_params(), sort_keys=True) == json.dumps({"steps": 3} | params, sort_keys=True)
    assert read.parameters.keys() & params.keys()


def test_an_attack_that_names_its_own_number_of_steps_badly_has_none():
    assert [AttackIdentity(parameters=each).steps for each in ({}, {"steps": "many"}, {"steps": 4})] == [None, None, 4]


def test_every_way_to_compute_passes_is_read_again():
    for folded in (False, True):
        for precision in ("fp32", "bf16", "tf32"):
            for compiled in (False, True):
                identity = AttackIdentity("x", "tests 1", {"steps": 1}, PassOptions(folded, precision, compiled))
                assert AttackIdentity.from_params(on_disk(identity.to_params()), "x", "tests 1") == identity


def test_another_identity_leaves_the_computation_what_it_is():
    attack = fake("mine", darken, {"steps": 2})
    other = attack.identified(replace(attack.identity, name="theirs", left="0123"))
    assert (other.name, other.params, other.fn) == ("theirs", {"steps": 2, "on what was left": "0123"}, darken)
    assert attack.params == {"steps": 2} and isinstance(other, Attack)
    assert attack_folder(Column("mine", (attack,), False), attack) != attack_folder(Column("mine", (other,), False), other)
