"""Batches that a module cannot train on: mixtures of another view, too many views, other sizes."""

import pytest
import torch

from mixco_lightly import (
    IMixLoss,
    MixCoCollate,
    MixCoLoss,
    MultiExitBackbone,
    SelfConLoss,
    UnMixLoss,
    create_backbone,
)
from mixco_lightly.models.imix import IMixMoCo, IMixNPair
from mixco_lightly.models.moco import MoCo
from mixco_lightly.models.selfcon import SelfCon, SelfConClassifier
from mixco_lightly.models.simclr import SimCLR
from tests.models.test_lightning_modules import attach


def create(name):
    torch.manual_seed(0)
    if name == "moco":
        return MoCo(create_backbone("test_resnet", 16), MixCoLoss(memory_bank_size=(10, 128)))
    if name == "unmix":
        return MoCo(create_backbone("test_resnet", 16), UnMixLoss(memory_bank_size=(10, 128)))
    if name == "imix":
        return IMixMoCo(create_backbone("test_resnet", 16), IMixLoss(memory_bank_size=(10, 128)))
    if name == "npair":
        return IMixNPair(create_backbone("test_resnet", 16), IMixLoss())
    if name == "simclr":
        return SimCLR(create_backbone("test_resnet", 16), MixCoLoss())
    network = MultiExitBackbone("test_resnet", 16, exits=(2,))
    if name == "selfcon":
        return SelfCon(network, SelfConLoss(), supervised=False, mix_criterion=MixCoLoss())
    return SelfConClassifier(network, num_classes=3, criterion=SelfConLoss())


def samples_of(*sizes):
    torch.manual_seed(1)
    return [([torch.rand(3, size, size) for size in sizes], i % 3) for i in range(6)]


@pytest.mark.parametrize(
    ("name", "views", "right"),
    [
        ("moco", (1,), (0,)),
        ("imix", (1,), (0,)),
        ("npair", (1,), (0,)),
        ("simclr", (1, 0), (0, 1)),
        ("selfcon", (1, 0), (0, 1)),
    ],
)
def test_mixtures_of_the_wrong_view_are_refused_and_the_option_is_named(name, views, right):
    batch = MixCoCollate(views)(samples_of(16, 16))
    model = create(name)
    with pytest.raises(ValueError, match=r"of view 0 are needed, .* of view 1: set views") as error:
        model.training_step(batch, 0)
    assert str(right) in str(error.value)
    batch = MixCoCollate(right)(samples_of(16, 16))
    assert model.training_step(batch, 0).isfinite()


@pytest.mark.parametrize("name", ["imix", "npair"])
def test_imix_without_mixtures_says_what_to_give_the_loader(name):
    with pytest.raises(ValueError, match=r"no mixtures.*collate_fn=.*MixCollate\(mixer\)"):
        create(name).training_step(MixCoCollate()(samples_of(16, 16))[:2], 0)


@pytest.mark.parametrize("name", ["moco", "simclr", "selfcon"])
def test_an_empty_mixture_and_one_of_another_batch_are_refused(name):
    batch = MixCoCollate((0, 1))(samples_of(16, 16))
    mixture = batch[-1][0]
    model = create(name)
    batch[-1][0] = type(mixture)(*(tensor[:0] for tensor in mixture))
    with pytest.raises(ValueError, match="Mixture of view 0 is empty"):
        model.training_step(batch, 1)
    batch[-1][0] = mixture._replace(second=mixture.second + 3)
    with pytest.raises(ValueError, match="belongs to another batch"):
        model.training_step(batch, 0)


@pytest.mark.parametrize("name", ["moco", "unmix", "simclr", "selfcon"])
def test_a_batch_that_is_not_mixed_has_the_plain_terms_loss_and_logs_no_mix(name):
    batch = MixCoCollate((0, 1))(samples_of(16, 16))
    plain, baseline = attach(create(name)), attach(create(name))
    criterion = baseline.mix_criterion if name == "selfcon" else baseline.criterion
    criterion.mix_weight = 0.0
    if name == "selfcon":
        baseline.mix_criterion = None
    loss = plain.training_step([*batch[:2], []], 0)
    assert float(loss.detach()) == float(baseline.training_step([*batch[:2], []], 0).detach())
    assert "mix" not in plain.logged
    assert "lam" not in plain.logged
    loss.backward()  # every parameter has a gradient, as DDP expects in every step
    without = [key for key, p in plain.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize("name", ["imix", "npair"])
def test_imix_cannot_leave_mixtures_out_of_a_batch(name):
    batch = MixCoCollate((0, 1))(samples_of(16, 16))
    with pytest.raises(ValueError, match=r"mixtures of 0 view\(s\), but 1 are needed"):
        create(name).training_step([*batch[:2], []], 0)


@pytest.mark.parametrize(
    ("name", "mixed"),
    [(name, True) for name in ("moco", "unmix", "imix", "npair", "simclr", "selfcon")]
    + [(name, False) for name in ("moco", "simclr", "selfcon")],
)
def test_step_features_are_those_of_the_plain_view_without_gradient(name, mixed):
    batch = MixCoCollate((0, 1))(samples_of(16, 16))
    if not mixed:
        batch[-1] = []
    model = create(name).train()
    outputs = []
    network = model.network if name == "selfcon" else model.backbone
    network.register_forward_hook(lambda *args: outputs.append(args[-1]))
    model.training_step(batch, 0)
    expected = outputs[0]
    if name == "selfcon":
        expected = expected[-1]  # the deepest exit
    expected = expected[3:] if name == "npair" else expected[:6]  # mixtures first
    assert torch.equal(model.step_features, expected.detach())
    assert not model.step_features.requires_grad
    assert len(model.step_features) == (3 if name == "imix" else 6)


@pytest.mark.parametrize("name", ["moco", "simclr", "imix", "npair"])
@pytest.mark.parametrize("sizes", [(16,), (16, 16, 8, 8)])
def test_a_method_of_two_views_says_how_many_a_batch_has(name, sizes):
    batch = MixCoCollate()(samples_of(*sizes))
    with pytest.raises(ValueError, match=f"has {len(sizes)} views of each image, but 2 are needed"):
        create(name).training_step(batch, 0)


@pytest.mark.parametrize("name", ["selfcon", "classifier"])
def test_views_that_share_a_forward_must_have_one_size(name):
    batch = MixCoCollate((0, 1))(samples_of(16, 8))
    with pytest.raises(ValueError, match=r"must have one size, got \(3, 16, 16\), \(3, 8, 8\)"):
        create(name).training_step(batch, 0)


@pytest.mark.parametrize("name", ["moco", "simclr", "selfcon", "classifier"])
def test_a_batch_that_is_a_dict_is_named_with_its_keys(name):
    with pytest.raises(ValueError, match=r"list of views.*dict with the keys \['image'\]"):
        create(name).training_step({"image": torch.rand(6, 3, 16, 16)}, 0)
