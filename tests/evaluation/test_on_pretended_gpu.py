"""Features and probes on the pretended GPU: what the CPU finds, and images that cross freely."""

import copy

import pytest
import torch

from mixco_lightly import Features, create_backbone, extract_features, knn_probe, linear_probe
from tests.pretended_gpu import pretended_gpu


def batches_of(count=3):
    torch.manual_seed(1)
    return [(torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])) for _ in range(count)]


def features_of(seed):
    torch.manual_seed(seed)
    targets = torch.arange(40) % 4
    return Features(torch.randn(40, 6) + 2 * torch.eye(4, 6)[targets], targets)


@pytest.mark.parametrize("device", [None, "cuda"])
def test_features_from_a_gpu_are_those_of_the_cpu_and_the_backbone_stays_where_it_was(device):
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", 16)
    expected = extract_features(copy.deepcopy(backbone), batches_of())
    with pretended_gpu() as gpu:
        if device is None:
            backbone.to("cuda")
            gpu.waits.clear()
        home = next(backbone.parameters()).device
        features, targets = extract_features(backbone, batches_of(), device)
        assert next(backbone.parameters()).device == home
        assert type(features) is type(targets) is torch.Tensor
    torch.testing.assert_close(features, expected.features)
    assert torch.equal(targets, expected.targets)


def test_images_cross_to_a_gpu_without_a_wait():
    backbone = create_backbone("test_resnet", 16)
    with pretended_gpu() as gpu:
        backbone.to("cuda")
        gpu.waits.clear()
        extract_features(backbone, batches_of())
        assert all("from the GPU" in wait and ".cpu()" in wait for wait in gpu.waits)


@pytest.mark.parametrize("rates", [0.1, [0.1, 0.3]], ids=["one rate", "a choice"])
def test_a_linear_probe_on_a_gpu_is_that_of_the_cpu(rates):
    train, test = features_of(0), features_of(1)
    expected = linear_probe(train, test, learning_rate=rates, epochs=4, batch_size=16)
    with pretended_gpu():
        options = {"learning_rate": rates, "epochs": 4, "batch_size": 16}
        assert linear_probe(train, test, device="cuda", **options) == expected
        on_gpu = [Features(*(x.to("cuda") for x in part)) for part in (train, test)]
        assert linear_probe(*on_gpu, **options) == expected


def test_a_knn_probe_of_features_on_a_gpu_is_that_of_the_cpu():
    train, test = features_of(0), features_of(1)
    expected = knn_probe(train, test, k=5)
    with pretended_gpu():
        on_gpu = [Features(*(x.to("cuda") for x in part)) for part in (train, test)]
        assert knn_probe(*on_gpu, k=5) == expected
