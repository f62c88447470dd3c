"""What records passes in tests: a stand-in for CUDA graphs that holds whoever uses it to their rules."""

from contextlib import contextmanager

import pytest
import torch

from robench.models import graphed
from robench.models.classifier import Classifier
from robench.models.recording import Recording


class StandIn:
    """Records the callable, and runs it again into the tensor in which its result lay the first time.

    Attributes:
        made: recordings.
        replays: of all of them.
    """

    def __init__(self, device=None):
        self.made = self.replays = 0

    def rehearse(self, work):
        work()

    def record(self, work):
        result = work().clone()
        self.made += 1

        def replay():
            self.replays += 1
            again = work()
            assert again.shape == result.shape and again.dtype == result.dtype
            result.copy_(again)

        return Recording(replay, result)

    def forget(self):
        pass


@contextmanager
def stood_in(ladder=graphed.LADDER, **constants):
    """Inside the block every classifier's passes are recorded as on a GPU, by a stand-in of each classifier, which it collects."""
    made = []

    def recorder_for(device):
        made.append(StandIn(device))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphed, "recorder_for", recorder_for)
        patch.setattr(graphed, "LADDER", ladder)
        for name, value in constants.items():
            patch.setattr(graphed, name, value)
        yield made


def settled(classifier: Classifier, passes, images):
    """After it the pass of so many images is recorded with and without gradient, if it can be."""
    with classifier.counting():
        for _ in range(graphed.ASKED):
            classifier(images.clone().requires_grad_())
            with torch.no_grad():
                classifier(images)
    return passes
