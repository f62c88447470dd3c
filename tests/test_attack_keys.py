"""The keys of the attacks' columns on disk: a run of an earlier version is continued, not computed again."""

import json

import pytest
from make_attack_keys import FILE, VERSION, all_keys

from robench.adapters import autoattack, torchattacks

PINNED = json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def keys():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoattack, "version", lambda package: VERSION)
        patch.setattr(torchattacks, "version", lambda package: VERSION)
        return json.loads(json.dumps(all_keys()))


def test_every_name_that_is_pinned_is_asked(keys):
    assert keys.keys() == PINNED.keys() and len(PINNED) > 100


@pytest.mark.parametrize("asked", PINNED)
def test_a_name_stands_for_the_attack_and_the_folder_that_it_always_has(keys, asked):
    assert keys[asked] == PINNED[asked]
