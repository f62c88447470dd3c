"""ImageNet's classes in the order that everybody's weights have."""

from __future__ import annotations

import re

import pytest

from robench.data.imagenet_classes import names, synsets


def test_imagenets_synsets_are_a_thousand_in_sorted_order() -> None:
    assert len(set(synsets())) == 1000
    assert list(synsets()) == sorted(synsets())
    assert len(set(names())) == 1000
    assert all(re.fullmatch(r"n\d{8}", each) for each in synsets())


@pytest.mark.parametrize(
    ("output", "synset", "name"),
    [
        (0, "n01440764", "tench"),
        (207, "n02099601", "golden retriever"),
        (281, "n02123045", "tabby"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_an_output_stands_for_the_synset_and_the_name_that_torchvision_gives_it(output: int, synset: str, name: str) -> None:
    assert (synsets()[output], names()[output]) == (synset, name)


def test_the_synsets_are_those_of_timm() -> None:
    timm_data = pytest.importorskip("timm.data", reason="timm is not installed")
    listed = timm_data.ImageNetInfo().label_names()
    assert list(synsets()) == list(listed)
