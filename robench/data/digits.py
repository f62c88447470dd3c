"""Handwritten digits that come with scikit-learn: real images, no download."""

from __future__ import annotations

from robench.types import Dataset, RobenchError

SHAPES = ("straight", "loops", "open curves")
SHAPE_OF_DIGIT = (1, 0, 2, 2, 0, 2, 1, 0, 1, 1)  # straight 1 4 7, loops 0 6 8 9, open curves 2 3 5
N_TEST = 400

# At 8/255 even an undefended network keeps 91 % of these high-contrast images, so that radius would tell nothing apart.
DEFAULT_EPS = {"Linf": "0.2", "L2": "2", "L1": "20"}


def load_digits(split: str) -> Dataset:
    """1,797 digits of 8x8 pixels, each pixel as 4x4 of the 32x32 RGB image, 1,397 to train on and 400 to test.

    The split is one fixed permutation (NumPy's legacy generator with seed 0, which never changes). Averaging 4x4 blocks
    gives the 8x8 originals back exactly.

    Source: https://archive.ics.uci.edu/dataset/80 through ``sklearn.datasets.load_digits``.
    """
    import numpy as np
    import torch

    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError:
        raise RobenchError("the digits come with scikit-learn, which is not installed: pip install 'robench[demo]'") from None
    bunch = sklearn_digits()
    order = np.random.RandomState(0).permutation(len(bunch.target))
    chosen = order[:N_TEST] if split == "test" else order[N_TEST:]
    pixels = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(pixels.repeat(4, axis=1).repeat(4, axis=2))[:, None].expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(bunch.target[chosen].astype(np.int64))
    return Dataset(
        name="digits",
        split=split,
        images=images,
        labels=labels,
        classes=tuple(str(digit) for digit in range(10)),
        default_eps=DEFAULT_EPS,
        coarse_labels=torch.tensor(SHAPE_OF_DIGIT)[labels],
        coarse_classes=SHAPES,
        mirror=False,
    )
