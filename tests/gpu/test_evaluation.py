"""Features and probes on the GPU are those of the CPU, and random generators stay as they were."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from mixco_lightly import (
    Features,
    create_backbone,
    estimate_mutual_information,
    export_backbone,
    extract_features,
    knn_probe,
    linear_probe,
    load_backbone,
)
from mixco_lightly.evaluation.image_probes import paper_probe
from tests.gpu.conftest import DEVICE

CLASSES = 4


def create_images(n, seed):
    """Noise with a colour for each class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % CLASSES
    colours = torch.rand(CLASSES, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    images = torch.randn(n, 3, 32, 32, generator=generator) + 2 * colours[targets]
    return TensorDataset(images, targets)


def create_features(n, seed):
    """Classes that overlap, so that accuracies are neither 100% nor chance."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % CLASSES
    centres = torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(0))
    return Features(torch.randn(n, 16, generator=generator) + 0.5 * centres[targets], targets)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_features_are_those_of_the_cpu(name):
    torch.manual_seed(0)
    backbone = create_backbone(name, 32)
    loader = DataLoader(create_images(40, seed=1), batch_size=16)
    expected = extract_features(backbone, loader)
    features = extract_features(backbone, loader, device=DEVICE)
    assert {tensor.device.type for tensor in features} == {"cpu"}
    assert next(backbone.parameters()).device.type == "cpu"  # it is back
    assert torch.equal(features.targets, expected.targets)
    scale = float(expected.features.abs().max())
    torch.testing.assert_close(features.features, expected.features, rtol=1e-4, atol=1e-4 * scale)


def test_a_backbone_on_the_gpu_is_exported_with_its_weights(tmp_path):
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", 32).to(DEVICE)
    loaded = load_backbone(export_backbone(backbone, tmp_path))
    state = backbone.state_dict()
    assert all(torch.equal(x, state[name].cpu()) for name, x in loaded.state_dict().items())


@pytest.mark.parametrize("learning_rate", [0.1, [0.1, 0.01]], ids=["one", "chosen"])
def test_linear_probe_is_that_of_the_cpu(learning_rate):
    train, test = create_features(400, seed=1), create_features(400, seed=2)
    options = {"epochs": 20, "learning_rate": learning_rate}
    expected = linear_probe(train, test, **options)
    result = linear_probe(train, test, device=DEVICE, **options)
    assert 40 < expected.top1 < 99
    assert result.top1 == pytest.approx(expected.top1, abs=1)
    assert result.note == expected.note


def test_knn_probe_is_that_of_the_cpu():
    train, test = create_features(400, seed=1), create_features(400, seed=2)
    expected = knn_probe(train, test, k=20)
    moved = [Features(*(tensor.to(DEVICE) for tensor in part)) for part in (train, test)]
    assert 40 < expected.top1 < 99
    assert knn_probe(*moved, k=20).top1 == pytest.approx(expected.top1, abs=0.5)


def test_estimates_and_probes_leave_the_random_generators_as_they_were():
    images = create_images(32, seed=1)
    backbone = create_backbone("test_resnet", 32).to(DEVICE)
    test = extract_features(backbone, [images[:]])
    x = torch.randn(400, 4, device=DEVICE)
    torch.manual_seed(5)
    expected = torch.rand(4, device=DEVICE), torch.rand(4)
    torch.manual_seed(5)
    estimate_mutual_information(x, -x, steps=20, batch_size=32, test_pairs=32)
    paper_probe(backbone, images, test, CLASSES, epochs=1)
    assert torch.equal(torch.rand(4, device=DEVICE), expected[0])
    assert torch.equal(torch.rand(4), expected[1])
