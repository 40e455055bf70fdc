"""Mixing and augmenting on the GPU give what the CPU gives."""

import pytest
import torch

from mixco_lightly import mix_pairs
from mixco_lightly.data.catalogue import get_dataset
from mixco_lightly.data.device_transforms import DeviceTransform
from mixco_lightly.data.transforms import create_pretrain_transform
from tests.gpu.conftest import DEVICE


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("n", [8, 9])
def test_mixtures_are_what_they_say(n, alpha, dtype, tolerance):
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    generator = torch.Generator(DEVICE).manual_seed(1)
    mixture = mix_pairs(images.to(DEVICE), alpha, generator)
    assert {tensor.device.type for tensor in mixture} == {DEVICE.type}
    on_cpu = mixture.to("cpu")
    assert on_cpu.first.tolist() == list(range(n // 2))
    assert on_cpu.second.tolist() == [i + n // 2 for i in range(n // 2)]
    assert on_cpu.lam.dtype == torch.float32
    assert ((on_cpu.lam >= 0) & (on_cpu.lam <= 1)).all()
    assert len(on_cpu.lam.unique()) == n // 2
    lam = on_cpu.lam.view(-1, 1, 1, 1)
    expected = lam * images[on_cpu.first] + (1 - lam) * images[on_cpu.second]
    torch.testing.assert_close(on_cpu.images.float(), expected, rtol=0, atol=tolerance)
    again = mix_pairs(images.to(DEVICE), alpha, torch.Generator(DEVICE).manual_seed(1))
    assert torch.equal(again.lam, mixture.lam)


def test_weights_of_mixtures_follow_their_law():
    images = torch.zeros(40_000, 1, 1, 1, device=DEVICE)
    for alpha in (1.0, 0.5):
        lam = mix_pairs(images, alpha, torch.Generator(DEVICE).manual_seed(0)).lam.cpu()
        assert float(lam.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(lam.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


@pytest.mark.parametrize(
    ("method", "dataset", "size"),
    [
        ("moco", "cifar10", 32),
        ("simclr", "cifar10", 32),
        ("selfcon", "cifar100", 32),
        ("moco", "digits", 32),
        ("moco", "tiny-imagenet", 64),
        ("simclr", "tiny-imagenet", 64),
    ],
)
def test_a_seed_gives_the_views_of_the_cpu(method, dataset, size):
    transform = DeviceTransform(create_pretrain_transform(method, get_dataset(dataset).facts, size))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, size, size), dtype=torch.uint8, generator=generator)
    for seed in range(3):
        torch.manual_seed(seed)
        expected = transform(images)
        torch.manual_seed(seed)
        views = transform(images.to(DEVICE))
        for view, reference in zip(views, expected, strict=True):
            assert view.device.type == DEVICE.type
            difference = (view.cpu() - reference).abs()
            # A rotation takes the nearest pixel, and where two are as near, either.
            assert (difference > 1e-3).float().mean() < (5e-3 if dataset == "digits" else 1e-4)
