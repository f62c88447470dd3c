"""The words that robench writes: members of enumerations, and the same strings wherever they are written or read."""

import io
import json
import pickle

import numpy as np
import pandas as pd
import pytest
from cases import column, darken
from jinja2 import Environment
from test_engine import outcomes, run

from robench.authoring import Description, attack
from robench.code_digest import digest_function
from robench.evaluation.run_folder import read_chunk
from robench.types import Attack, Finding, Level, Outcome, ReturnPolicy, RobenchError

MEMBERS = [*Outcome, *Level, *ReturnPolicy]
each_member = pytest.mark.parametrize("member", MEMBERS, ids=[f"{type(member).__name__}.{member.name}" for member in MEMBERS])


def test_the_words_and_their_order_are_what_they_were():
    assert list(Outcome) == ["misclassified", "broken", "robust", "skipped", "invalid", "error"]
    assert list(Level) == ["fail", "warn", "unknown", "pass"]  # the gravest first
    assert list(ReturnPolicy) == ["last", "any", "forward", "late"]
    assert Outcome.UNDECIDED == (Outcome.INVALID, Outcome.ERROR) and "UNDECIDED" not in Outcome.__members__


@each_member
def test_a_member_is_written_as_its_string(member):
    word = member.value
    assert (member == word, f"{member}", str(member), "".join([member]), hash(member)) == (True, word, word, word, hash(word))
    assert json.dumps({member: [member]}, indent=2) == json.dumps({word: [word]}, indent=2)
    assert pd.DataFrame({"word": [member]}).to_csv() == pd.DataFrame({"word": [word]}).to_csv()
    assert Environment(autoescape=True).from_string("{{ word }}").render(word=member) == word
    assert pickle.loads(pickle.dumps(member)) is member


@each_member
def test_arrays_of_members_hold_strings(member):
    word, other = member.value, np.array([member.value, "other"], "U13")
    arrays = [np.array([member, member]), np.full(2, member), np.where([True, False], member, other), np.append(other, member)]
    assert {array.dtype.kind for array in arrays} == {"U"} and all(word in array for array in arrays)
    assert (other == member).tolist() == np.isin(other, (member,)).tolist() == [True, False]
    file = io.BytesIO()
    np.savez_compressed(file, words=arrays[0], word=member)
    file.seek(0)
    with np.load(file, allow_pickle=False) as read:
        assert read["words"].tolist() == [word, word] and read["word"].item() == word


@pytest.mark.parametrize("dtype", [None, "object"])
def test_columns_of_strings_are_asked_by_member(dtype):
    said = pd.Series(["broken", "robust", "error", "error"], dtype=dtype)
    assert (said == Outcome.BROKEN).tolist() == [True, False, False, False]
    assert said.isin(Outcome.UNDECIDED).tolist() == [False, False, True, True]
    assert said.map({Outcome.BROKEN: 3, Outcome.ROBUST: 1}).tolist()[:2] == [3, 1]
    assert (said.value_counts().get(Outcome.ERROR), said.value_counts().get(Outcome.SKIPPED, 0)) == (2, 0)


def test_a_run_keeps_strings_on_disk_and_in_its_tables(tmp_path):
    results = run(tmp_path, [column("darken", darken)], offsets=[-0.1, 0.05, 0.2])
    for file in (tmp_path / "chunks").rglob("*.npz"):
        chunk = read_chunk(file)
        assert chunk.outcome.dtype == chunk.best.dtype == np.dtype("U13")
    assert outcomes(results, "darken") == {0: "misclassified", 1: "broken", 2: "robust"}
    assert {type(word) for word in results.verdicts["outcome"]} == {str}


def test_a_finding_is_written_with_its_level_as_a_string():
    finding = Finding(check="noise", level=Level.FAIL, says="", evidence="", source="")
    assert json.loads(json.dumps(vars(finding)))["level"] == "fail" and f"{finding.level}: noise" == "fail: noise"


def lift(model, images, labels, threat, seed):
    return images


@pytest.mark.parametrize("returns", ["any", ReturnPolicy.ANY])
def test_what_an_attack_returns_may_be_given_as_a_string(returns):
    assert attack(returns=returns)(lambda *_: None).robench_attack.returns is ReturnPolicy.ANY
    assert Description(returns=returns).returns is ReturnPolicy.ANY
    assert Attack.of(lift, returns=returns).returns is ReturnPolicy.ANY


@pytest.mark.parametrize("describe", [lambda said: attack(returns=said), lambda said: Attack.of(lift, returns=said)])
def test_an_unknown_policy_is_refused_in_words(describe):
    with pytest.raises(
        RobenchError, match="^an attack that returns 'best'; expected one of last, any, forward, late, see robench.types"
    ):
        describe("best")


def test_a_function_that_refers_to_a_member_is_keyed_as_by_the_string():
    def keyed(value):
        def named(model, images, labels, threat, seed):
            return value

        return digest_function(named)

    assert keyed(ReturnPolicy.ANY) == keyed("any") != keyed(ReturnPolicy.LAST)
