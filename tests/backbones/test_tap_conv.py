import copy

import pytest
import timm
import torch
from torch import nn

from mixco_lightly import create_backbone
from mixco_lightly.backbones.tap_conv import TapConv2d, use_tap_convolutions

SIZES = [(1, 1), (2, 2), (1, 2), (2, 1), (1, 4), (4, 1)]


def tap_conv_of(conv: nn.Conv2d) -> TapConv2d:
    tap = copy.deepcopy(conv)
    tap.__class__ = TapConv2d
    return tap


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        (3, 1, 1),
        (3, 2, 1),
        ((3, 1), (1, 2), (1, 0)),
        (5, 1, 2),
        (5, 3, 2),
        (2, 1, 1),
        (7, 2, 3),
        (1, 1, 0),
        (2, 2, 0),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_convolution_with_its_gradients(size, kernel, stride, padding, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, kernel, stride, padding, bias=bias).double()
    images = torch.randn(5, 3, *size, dtype=torch.float64)
    try:
        conv(images)
    except RuntimeError:
        with pytest.raises(RuntimeError):  # a kernel larger than the padded image
            tap_conv_of(conv)(images)
        return
    gradients = []
    for module in (conv, tap_conv_of(conv)):
        x = images.clone().requires_grad_()
        y = module(x)
        weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
        (y * weight).sum().backward()
        gradients.append([y.detach(), x.grad, *(p.grad for p in module.parameters())])
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_products_and_not_the_convolution_are_used_for_small_inputs_with_gradient(monkeypatch):
    called = []
    published = nn.Conv2d.forward
    monkeypatch.setattr(
        nn.Conv2d, "forward", lambda self, x: called.append(tuple(x.shape)) or published(self, x)
    )
    conv = tap_conv_of(nn.Conv2d(2, 3, 3, padding=1))
    conv(torch.randn(2, 2, 2, 2))
    assert not called
    conv(torch.randn(2, 2, 2, 3))  # six pixels
    with torch.no_grad():
        conv(torch.randn(2, 2, 1, 1))
    assert called == [(2, 2, 2, 3), (2, 2, 1, 1)]


def test_under_autocast_the_result_has_the_convolutions_dtype():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    images = torch.randn(2, 4, 1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, actual = conv(images), tap_conv_of(conv)(images)
    assert actual.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(actual, expected)


def test_names_parameters_and_state_stay_and_only_fitting_convolutions_change():
    model = nn.ModuleDict(
        {
            "fits": nn.Conv2d(64, 128, 3, padding=1),
            "one pixel": nn.Conv2d(64, 64, 1),
            "grouped": nn.Conv2d(64, 64, 3, padding=1, groups=2),
            "dilated": nn.Conv2d(64, 64, 3, padding=2, dilation=2),
            "reflected": nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
            "same": nn.Conv2d(64, 64, 3, padding="same"),
            "narrow": nn.Conv2d(32, 64, 3, padding=1),
        }
    )
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    use_tap_convolutions(model)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert [name for name, conv in model.items() if isinstance(conv, TapConv2d)] == ["fits"]


@pytest.mark.parametrize("image_size", [32, 64])
def test_a_resnet_has_the_features_and_gradients_of_timms(image_size):
    torch.manual_seed(0)
    ours = create_backbone("resnet18", image_size, stem="timm").double()
    theirs = timm.create_model("resnet18", num_classes=0).double()
    theirs.load_state_dict(ours.model.state_dict())
    assert any(isinstance(module, TapConv2d) for module in ours.modules())
    images = torch.randn(4, 3, image_size, image_size, dtype=torch.float64)
    features, expected = ours(images), theirs(images)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-10)
    features.square().sum().backward()
    expected.square().sum().backward()
    for actual, parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, parameter.grad, rtol=1e-8, atol=1e-8)
