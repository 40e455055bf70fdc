"""BatchNorm over all processes: timm's activations, names and weights stay."""

import copy

import pytest
import pytorch_lightning as pl
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from mixco_lightly import (
    IMixLoss,
    MixCoCollate,
    MixCoLoss,
    MultiExitBackbone,
    SelfConLoss,
    create_backbone,
    export_backbone,
    load_backbone,
)
from mixco_lightly.models.imix import IMixNPair
from mixco_lightly.models.moco import MoCo
from mixco_lightly.models.selfcon import SelfCon, SelfConClassifier
from mixco_lightly.models.simclr import SimCLR
from mixco_lightly.models.sync_batchnorm import TimmSyncBatchNorm

WITH_ACTIVATION = "test_efficientnet"  # timm's smallest with BatchNormAct2d
NAMES = ["MoCo", "SimCLR", "IMixNPair", "SelfCon", "SelfConClassifier"]


def create(name, backbone=WITH_ACTIVATION):
    torch.manual_seed(0)
    if name in ("SelfCon", "SelfConClassifier"):
        network = MultiExitBackbone(backbone, 32, exits=(2,))
        if name == "SelfCon":
            return SelfCon(network, SelfConLoss(), batch_norm=True)
        return SelfConClassifier(network, 3, SelfConLoss())
    if name == "MoCo":
        return MoCo(create_backbone(backbone, 32), MixCoLoss(memory_bank_size=(8, 16)))
    if name == "IMixNPair":
        return IMixNPair(create_backbone(backbone, 32), IMixLoss(), 16)
    return SimCLR(create_backbone(backbone, 32), MixCoLoss(), 16)


def layers(model, kind):
    return {name for name, layer in model.named_modules() if isinstance(layer, kind)}


def features(model, images):
    """Features with BatchNorm's running statistics, made to differ from those at the start."""
    with torch.no_grad():
        return model.eval()(images)


@pytest.mark.parametrize("flag", [{"sync_batchnorm": True}, {"plugins": [TimmSyncBatchNorm()]}])
@pytest.mark.parametrize("name", NAMES)
def test_lightning_synchronises_every_batch_norm_and_keeps_timms_activations(name, flag):
    model = create(name)
    images = torch.rand(4, 3, 32, 32)
    model(images)  # running statistics of its own
    expected = features(copy.deepcopy(model), images)
    before = layers(model, nn.modules.batchnorm._BatchNorm)
    types = {layer: type(model.get_submodule(layer)) for layer in before}
    parameters = dict(model.named_parameters())
    state = {name: x.clone() for name, x in model.state_dict().items()}
    assert BatchNormAct2d in types.values()

    # What Lightning does at the start of a fit on several devices.
    model.trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        **flag,
    )
    model.setup("fit")
    plugin = model.trainer.strategy._layer_sync
    converted = plugin.apply(model)
    assert layers(converted, nn.SyncBatchNorm) == before
    assert dict(converted.named_parameters()).keys() == parameters.keys()
    assert all(x is parameters[name] for name, x in converted.named_parameters())
    assert converted.state_dict().keys() == state.keys()
    assert torch.equal(features(converted, images), expected)

    # And what it does at the end.
    reverted = plugin.revert(converted.train())
    assert {name: type(reverted.get_submodule(name)) for name in before} == types
    assert all(layer.training for layer in reverted.modules())
    assert all(torch.equal(x, state[name]) for name, x in reverted.state_dict().items())
    assert torch.equal(features(reverted, images), expected)


def test_the_reverted_layers_have_what_the_synchronised_ones_learned_on_their_device():
    model, plugin = create("MoCo"), TimmSyncBatchNorm()
    plugin.apply(model)
    model.double()  # other buffers, as after a move to a GPU
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            value.add_(1)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    reverted = plugin.revert(model).state_dict()
    assert reverted.keys() == state.keys()
    for name, x in state.items():
        assert x.dtype == reverted[name].dtype
        assert torch.equal(x, reverted[name])


def test_a_network_that_is_synchronised_already_keeps_its_activations():
    model, plugin = create("SimCLR"), TimmSyncBatchNorm()
    images = torch.rand(4, 3, 32, 32)
    expected = features(model, images)
    TimmSyncBatchNorm().apply(model)
    plugin.apply(model)
    assert torch.equal(features(model, images), expected)
    assert layers(plugin.revert(model), nn.SyncBatchNorm)  # which the user made


def test_the_momentum_encoder_follows_the_query_encoder_through_the_conversion():
    # torch's SyncBatchNorm runs on one process as BatchNorm does.
    model = create("MoCo")
    twin = copy.deepcopy(model)
    TimmSyncBatchNorm().apply(model)
    samples = [([torch.rand(3, 32, 32), torch.rand(3, 32, 32)], 0) for _ in range(4)]
    batch = MixCoCollate()(samples)
    losses = []
    for one in (model, twin):
        loss = one.training_step(batch, 0)
        loss.backward()
        losses.append(loss)
        with torch.no_grad():
            for parameter in one.backbone.parameters():
                parameter.sub_(parameter.grad)
        one.training_step(batch, 1)
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    for name, x in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], x), name
    assert not any(p.requires_grad for p in model.backbone_momentum.parameters())


@pytest.mark.parametrize("backbone", [WITH_ACTIVATION, "resnet18"])
def test_channels_last_and_convolutions_by_taps_stay_through_the_conversion(backbone):
    model = create("SimCLR", backbone).to(memory_format=torch.channels_last)
    types = {name: type(x) for name, x in model.named_modules() if isinstance(x, nn.Conv2d)}
    TimmSyncBatchNorm().apply(model)
    assert {n: type(x) for n, x in model.named_modules() if isinstance(x, nn.Conv2d)} == types
    weights = [x for x in model.parameters() if x.dim() == 4]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in weights)


def test_an_export_of_a_synchronised_network_loads_as_another(tmp_path):
    model = create("SimCLR")
    images = torch.rand(4, 3, 32, 32)
    names = model.backbone.model.state_dict().keys()
    TimmSyncBatchNorm().apply(model)
    export_backbone(model, tmp_path)
    loaded = load_backbone(tmp_path)
    assert loaded.model.state_dict().keys() == names
    assert not layers(loaded, nn.SyncBatchNorm)
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))
    plain = timm.create_model(WITH_ACTIVATION, num_classes=0)
    assert plain.state_dict().keys() == names
