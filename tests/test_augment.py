import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from robench.data.augment import (
    VIEWS,
    _blend,
    _blur,
    _color_jitter,
    _gray,
    _order,
    _resized_crop,
    _rotate_hue,
    _uniform,
    simclr_view,
    standard_view,
    to_unit,
)


def batch(n=64, size=32, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def rng(seed=1):
    return torch.Generator().manual_seed(seed)


def test_every_standard_view_is_a_crop_of_the_padded_image_or_of_its_mirror():
    images = batch(32, size=8)
    views = standard_view(images, rng(), mirror=True)
    padded = F.pad(to_unit(images), (4, 4, 4, 4))
    seen = set()
    for image, view in zip(padded, views, strict=True):
        found = [
            (top, left, mirrored)
            for top in range(9)
            for left in range(9)
            for mirrored in (False, True)
            if torch.equal(
                view, image[:, top : top + 8, left : left + 8].flip(2) if mirrored else image[:, top : top + 8, left : left + 8]
            )
        ]
        assert found
        seen.add(found[0])
    assert len(seen) > 16  # drawn per sample
    assert {mirrored for *_, mirrored in seen} == {False, True}


def test_no_view_mirrors_where_a_mirrored_image_is_another_class():
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(200, 3, 32, 32)
    for name, view in VIEWS.items():
        rising = view(ramp, rng(), mirror=False)[..., 6:26].mean((1, 2)).diff(dim=1)
        assert (rising >= -0.05).all(), name


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_float32_in_the_box_and_repeat_with_the_generator(name):
    images = batch()
    first, again, other = (VIEWS[name](images, rng(seed), mirror=True) for seed in (1, 1, 2))
    assert first.dtype == torch.float32 and first.shape == images.shape
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_simclr_parameters_are_drawn_per_sample():
    same = batch(1).expand(50, -1, -1, -1)
    views = simclr_view(same, rng(), mirror=True)
    assert len(torch.unique(views.flatten(1), dim=0)) == 50


def test_share_of_gray_views_is_the_papers():
    views = simclr_view(batch(4000, size=8), rng(), mirror=True)
    gray = (views.amax(1) - views.amin(1)).flatten(1).amax(1) < 1e-3
    assert 0.17 < gray.float().mean() < 0.24


def test_resized_crop_of_a_constant_image_is_constant_and_stays_inside():
    images = torch.full((100, 3, 16, 16), 0.3)
    assert torch.allclose(_resized_crop(images, rng(), mirror=True), images)


def test_hue_turned_by_nothing_changes_nothing_and_gray_stays_gray():
    images = to_unit(batch(8))
    assert torch.allclose(_rotate_hue(images, torch.zeros(8)), images, atol=1e-5)
    gray = images[:, :1].expand(-1, 3, -1, -1).contiguous()
    assert torch.allclose(_rotate_hue(gray, torch.ones(8)), gray, atol=2e-3)


def test_blur_is_a_convolution_with_the_gaussian_of_its_sigma():
    images = to_unit(batch(1, size=9))
    sigma = torch.empty(1).uniform_(0.1, 2.0, generator=rng(5))
    taps = torch.exp(-0.5 * (torch.arange(-1, 2) / sigma) ** 2)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    expected = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect").transpose(0, 1), kernel[None, None]).transpose(0, 1)
    assert torch.allclose(_blur(images, rng(5)), expected, atol=1e-6)


def jitter_of_0_1(view, generator):
    """The colour jitter as it was before it ran without waiting for a GPU; its draws and sums on a CPU must stay these."""
    order = torch.randperm(4, device=view.device, generator=generator).tolist()
    factors = [_uniform(len(view), 0.2, 1.8, view, generator) for _ in range(3)]
    angle = _uniform(len(view), -0.2, 0.2, view, generator) * (2 * math.pi)
    for step in order:
        if step < 3:
            other = (0.0, _gray(view).mean((2, 3), keepdim=True), _gray(view))[step]
            view = _blend(view, other, factors[step])
        else:
            to_yiq = torch.tensor(((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)))
            cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
            turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
            matrix = torch.linalg.inv(to_yiq) @ turn @ to_yiq
            view = torch.bmm(matrix, view.flatten(2)).view_as(view).clamp_(0, 1)
    return view


def test_the_jitter_on_a_cpu_is_that_of_version_0_1_bit_for_bit():
    images, now, then = to_unit(batch(16)), rng(3), rng(3)
    for _ in range(12):
        assert torch.equal(_color_jitter(images, now), jitter_of_0_1(images, then))
    assert torch.equal(now.get_state(), then.get_state())


def test_the_order_of_jitters_on_a_gpu_follows_from_its_generators_state_and_all_are_as_frequent():
    def of(offset):
        state = torch.tensor([7, offset]).view(torch.uint8)  # seed and offset, as a CUDA generator gives them
        return _order(SimpleNamespace(device=torch.device("cuda"), get_state=lambda: state))

    assert of(4) == of(4) and {frozenset(of(offset)) for offset in range(9)} == {frozenset(range(4))}
    counts = Counter(of(4 * step) for step in range(4800))
    assert len(counts) == 24 and all(abs(count - 200) < 5 * math.sqrt(200) for count in counts.values())
