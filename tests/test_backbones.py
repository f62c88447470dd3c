import pytest
import torch
from torch import nn

from robench.models.backbones import BACKBONES, SmallMapConv2d


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_small_map_convolution_equals_the_plain_one_with_gradients(size, stride):
    torch.manual_seed(size + 10 * stride)
    plain = nn.Conv2d(5, 6, 3, stride=stride, padding=1, bias=False)
    ours = SmallMapConv2d(5, 6, 3, stride=stride, padding=1, bias=False)
    ours.load_state_dict(plain.state_dict())
    images = torch.randn(4, 5, size, size)
    results = []
    for conv in (plain, ours):
        inputs = images.clone().requires_grad_()
        outputs = conv(inputs)
        outputs.square().sum().backward()
        results.append((outputs, inputs.grad, conv.weight.grad))
    for expected, got in zip(*results, strict=True):
        assert got.shape == expected.shape
        assert torch.allclose(got, expected, atol=1e-5)


def test_resnet18_is_torchvisions_with_equal_logits_and_state_dict():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    reference = resnet18(weights=None)
    reference.fc = nn.Identity()
    ours = BACKBONES["resnet18"].build()
    ours.load_state_dict(reference.state_dict())
    images = torch.rand(3, 3, 32, 32)
    assert torch.allclose(ours.eval()(images), reference.eval()(images), atol=1e-5)
    assert sum(isinstance(module, SmallMapConv2d) for module in ours.modules()) == 16


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_gives_the_features_that_it_promises(name):
    entry = BACKBONES[name]
    assert entry.build().eval()(torch.rand(2, 3, 32, 32)).shape == (2, entry.n_features)
