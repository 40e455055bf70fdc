import copy

import pytest
import torch
from torch import nn

from mixco_lightly import Features, create_backbone, extract_features


def make_batches(sizes=(4, 4, 3), names=False):
    """The first pixel of an image is its index; its target is twice that."""
    batches, start = [], 0
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        index = torch.arange(start, start + size)
        images = torch.rand(size, 3, 32, 32, generator=generator)
        images[:, 0, 0, 0] = index.float()
        batch = (images, 2 * index)
        batches.append((*batch, [f"{i}.png" for i in index]) if names else batch)
        start += size
    return batches


def make_backbone():
    """BatchNorm and dropout, both of which behave differently in training."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4 * 8 * 8, 5),
    )


class FirstPixel(nn.Module):
    def forward(self, images):
        return images[:, :2, 0, 0]


def test_features_are_those_of_eval_mode_in_the_order_of_the_loader():
    backbone = make_backbone()
    batches = make_batches()
    expected = torch.cat([copy.deepcopy(backbone).eval()(images) for images, _ in batches])
    features, targets = extract_features(backbone, batches)
    assert torch.equal(features, expected)
    assert targets.tolist() == [2 * index for index in range(11)]


def test_each_feature_stays_with_its_target():
    features, targets = extract_features(FirstPixel(), make_batches())
    assert torch.equal(2 * features[:, 0].long(), targets)


@pytest.mark.parametrize("training", [True, False])
def test_weights_and_batch_norm_statistics_stay_bit_identical(training):
    backbone = make_backbone().train(training)
    before = copy.deepcopy(backbone.state_dict())
    extract_features(backbone, make_batches())
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_mode_of_every_submodule_is_restored():
    backbone = nn.Sequential(make_backbone(), make_backbone()).train()
    backbone[0][1].eval()
    backbone[1].eval()
    backbone[1][3].train()
    modes = [module.training for module in backbone.modules()]
    assert len(set(modes)) == 2
    extract_features(backbone[0], make_batches())
    extract_features(nn.Sequential(backbone[1]), make_batches())
    assert [module.training for module in backbone.modules()] == modes


def test_mode_is_restored_after_an_error():
    backbone = make_backbone()
    backbone[1].eval()
    modes = [module.training for module in backbone.modules()]
    with pytest.raises(RuntimeError):
        extract_features(backbone, [(torch.rand(2, 5, 32, 32), torch.zeros(2))])
    assert [module.training for module in backbone.modules()] == modes


def test_autograd_takes_the_features_and_the_backbone_afterwards():
    backbone = make_backbone()
    features, targets = extract_features(backbone, make_batches())
    assert not features.requires_grad
    assert not features.is_inference()
    assert not targets.is_inference()
    classifier = nn.Linear(5, 22)
    nn.functional.cross_entropy(classifier(features), targets).backward()
    assert classifier.weight.grad.any()
    backbone(torch.rand(4, 3, 32, 32)).sum().backward()
    assert backbone[0].weight.grad.isfinite().all()


class MovesByCopy(nn.Module):
    """Copies its weights on .to(), as a move between CPU and GPU does."""

    def __init__(self):
        super().__init__()
        self.model = make_backbone()

    def to(self, *args, **kwargs):
        return self._apply(torch.clone)

    def forward(self, images):
        return self.model(images)


def test_backbone_trains_on_after_being_moved_to_another_device():
    backbone = MovesByCopy()
    extract_features(backbone, make_batches(), device="cpu")
    assert not any(tensor.is_inference() for tensor in backbone.state_dict().values())
    backbone(torch.rand(4, 3, 32, 32)).sum().backward()


class Recorder(nn.Module):
    """Notes where it is moved to and where its images are."""

    def __init__(self):
        super().__init__()
        self.moves, self.image_devices = [], []

    def to(self, device):
        self.moves.append(torch.device(device).type)
        return self

    def forward(self, images):
        self.image_devices.append(images.device.type)
        return torch.ones(len(images), 2)


@pytest.mark.parametrize("device", ["meta", torch.device("meta")])
def test_backbone_and_images_go_to_the_device_and_the_backbone_comes_back(device):
    backbone = Recorder()
    result = extract_features(backbone, make_batches(), device=device)
    assert set(backbone.image_devices) == {"meta"}
    assert backbone.moves[0] == "meta"
    assert backbone.moves[-1] == "cpu"
    assert result.features.device.type == result.targets.device.type == "cpu"


def test_default_device_is_where_the_backbone_is():
    backbone = Recorder()
    backbone.register_parameter("weight", nn.Parameter(torch.ones(1, device="meta")))
    extract_features(backbone, make_batches())
    assert set(backbone.image_devices) == {"meta"}


@pytest.mark.parametrize("progress", [False, True])
def test_further_elements_of_a_batch_are_not_used(progress):
    backbone = make_backbone()
    plain = extract_features(backbone, make_batches())
    named = extract_features(backbone, make_batches(names=True), progress=progress)
    assert isinstance(named, Features)
    assert torch.equal(named.features, plain.features)
    assert torch.equal(named.targets, plain.targets)


def test_features_are_float32_and_targets_int64():
    images = torch.rand(4, 3, 32, 32).bfloat16()
    result = extract_features(
        make_backbone().bfloat16(), [(images, torch.tensor([0, 1, 2, 3], dtype=torch.int32))]
    )
    assert result.features.dtype == torch.float32
    assert result.targets.dtype == torch.int64


def test_loader_is_read_once():
    features, _ = extract_features(FirstPixel(), iter(make_batches()))
    assert len(features) == 11


def test_backbone_of_the_package_gives_its_feature_dim():
    backbone = create_backbone("test_resnet", image_size=32)
    features, _ = extract_features(backbone, make_batches())
    assert features.shape == (11, backbone.feature_dim)
    assert backbone.training


def test_empty_loader_is_a_clear_error():
    with pytest.raises(ValueError, match="no batch"):
        extract_features(make_backbone(), [])
