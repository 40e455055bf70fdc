"""The optimisers: their parameter groups, what they decay and scale, and which one is chosen."""

import pytest
import pytorch_lightning as pl
import timm
import torch
from lightly.utils.lars import LARS
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader

from mixco_lightly import MixCoLoss, MultiExitBackbone, SelfConLoss, create_backbone
from mixco_lightly.backbones.optimiser_facts import choose_optimizer, find_decayed
from mixco_lightly.models.moco import MoCo
from mixco_lightly.models.optimizer import create_optimizer
from mixco_lightly.models.selfcon import SelfCon, SelfConClassifier
from mixco_lightly.models.simclr import SimCLR

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"
)


def create(method, backbone="test_resnet", **options):
    if method in ("selfcon", "classifier"):
        network = MultiExitBackbone(backbone, 32, exits=(2,))
        if method == "selfcon":
            return SelfCon(network, SelfConLoss(), **options)
        return SelfConClassifier(network, 2, SelfConLoss(), **options)
    network = create_backbone(backbone, 32)
    if method == "simclr":
        return SimCLR(network, MixCoLoss(mix_weight=0), **options)
    return MoCo(network, MixCoLoss(mix_weight=0, memory_bank_size=(8, 16)), **options)


def fit(model, batches=4, **limits):
    """Fits a module on random images; returns its trainer."""
    torch.manual_seed(0)
    samples = [([torch.rand(3, 32, 32)] * 2, i % 2) for i in range(2 * batches)]
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **limits,
    )
    trainer.fit(model, DataLoader(samples, batch_size=2))
    return trainer


def create_for(model, name, weight_decay=0.1):
    """An optimiser for a module, as a trainer of one step creates it."""
    model.trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False)
    return create_optimizer(model, name, 0.1, weight_decay, 0)["optimizer"]


def decay_of(model, optimizer):
    """The weight decay of each trained parameter, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("method", ["moco", "simclr", "selfcon", "classifier"])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_the_groups_hold_every_trained_parameter_exactly_once(method, name):
    model = create(method)
    held = [p for group in create_for(model, name).param_groups for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(held) == len({id(p) for p in held}) == len(trained)
    assert {id(p) for p in held} == {id(p) for p in trained}


def test_sgd_decays_everything_in_one_group_as_the_authors_do():
    optimizer = create_for(create("moco"), "sgd")
    assert type(optimizer) is SGD
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, 0.1)


@pytest.mark.parametrize(("name", "kind"), [("adamw", AdamW), ("lars", LARS)])
@pytest.mark.parametrize(
    ("backbone", "spared"),
    [
        ("test_resnet", ["model.bn1.weight", "model.layer1.0.bn1.bias"]),
        ("test_vit", ["model.pos_embed", "model.cls_token", "model.blocks.0.norm1.weight"]),
        (
            "coatnet_pico_rw_224",
            ["model.stages.2.blocks.0.attn.rel_pos.relative_position_bias_table"],
        ),
        ("test_convnext", ["model.stages.0.blocks.0.gamma", "model.stem.1.weight"]),
        ("test_nfnet", ["model.stem.conv1.gain"]),  # (C, 1, 1, 1), and no name of timm's
    ],
)
def test_norms_biases_positions_and_tokens_do_not_decay(name, kind, backbone, spared):
    model = create("moco", backbone)
    optimizer = create_for(model, name)
    assert type(optimizer) is kind
    decay = decay_of(model, optimizer)
    assert {decay[f"backbone.{parameter}"] for parameter in spared} == {0.0}
    vectors = {name for name, p in model.named_parameters() if p.requires_grad and p.ndim < 2}
    assert {decay[vector] for vector in vectors} == {0.0}
    layers = {
        f"{name}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) and layer.weight.requires_grad
    }
    assert {decay[weight] for weight in layers} == {0.1}
    assert {x for x, value in decay.items() if value} == layers


class Patterned(torch.nn.Module):
    """Names what does not decay by a pattern, as newer timm models do."""

    def __init__(self):
        super().__init__()
        self.pos_embed = torch.nn.Sequential(torch.nn.Linear(2, 2))
        self.layer = torch.nn.Linear(2, 2)

    def no_weight_decay(self):
        return {"pos_embed.*"}


def test_patterns_of_timm_are_names_of_parameters_that_do_not_decay():
    decayed = find_decayed(torch.nn.ModuleDict({"backbone": Patterned()}))
    assert decayed == ["backbone.layer.weight"]


def test_lars_scales_the_rate_of_weights_and_not_of_biases():
    model = create("simclr")
    optimizer = create_for(model, "lars", weight_decay=1e-6)
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in names.items()}
    for p in names.values():
        p.grad = torch.full_like(p, 100.0)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1
    optimizer.step()
    for name, p in names.items():
        step = (before[name] - p.detach()).norm().item()
        if name.endswith(".bias"):
            assert step == pytest.approx(0.1 * 100 * p.numel() ** 0.5, rel=1e-4)
        elif p.ndim > 1:  # the trust coefficient 0.001 of the weights' own norm
            assert step == pytest.approx(0.1 * 0.001 * before[name].norm().item(), rel=1e-3)


def test_an_unknown_optimiser_and_a_lars_without_decay_are_errors():
    model = create("simclr")
    with pytest.raises(ValueError, match="optimizer must be 'sgd', 'adamw' or 'lars', got 'adam'"):
        create_for(model, "adam")
    with pytest.raises(ValueError, match="set weight_decay above 0"):
        create_for(model, "lars", weight_decay=0)


@pytest.mark.parametrize(
    ("backbone", "name", "reason"),
    [
        ("resnet18", "sgd", "convolutions with BatchNorm"),
        ("repvgg_a0", "sgd", "convolutions with BatchNorm"),
        ("mobilenetv3_small_050", "sgd", "convolutions with BatchNorm"),
        ("vit_tiny_patch16_224", "adamw", "attention"),
        ("swin_tiny_patch4_window7_224", "adamw", "attention"),
        ("vit_tiny_r_s16_p8_224", "adamw", "attention"),  # a hybrid
        ("levit_conv_128s", "adamw", "attention"),  # its norms are all BatchNorm
        ("convnext_atto", "adamw", "LayerNorm2d"),
        ("mixer_s32_224", "adamw", "LayerNorm"),
        ("resmlp_12_224", "adamw", "no BatchNorm"),
        ("test_efficientnet_gn", "adamw", "GroupNormAct"),
    ],
)
def test_auto_chooses_by_what_the_network_is_made_of(backbone, name, reason):
    with torch.device("meta"):
        network = timm.create_model(backbone, num_classes=0)
    assert choose_optimizer(network) == (name, reason)


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_accumulated_batches_are_one_step_of_the_schedule(optimizer):
    options = {"optimizer": optimizer, "learning_rate": 0.1, "warmup_epochs": 1}
    rates = []
    for batches, accumulate in ((4, 1), (8, 2)):
        model = create("simclr", **options)
        seen = []
        model.on_before_optimizer_step = lambda opt, seen=seen: seen.append(
            opt.param_groups[1]["lr"]
        )
        fit(model, batches, max_epochs=2, accumulate_grad_batches=accumulate)
        rates.append(seen)
    assert rates[0] == rates[1]
    assert rates[0] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.075, 0.025, 0.0], abs=1e-9)


def test_a_final_momentum_is_reached_in_the_last_step():
    class Spy(MoCo):
        momenta = ()

        def current_momentum(self):
            momentum = super().current_momentum()
            self.momenta = (*self.momenta, momentum)
            return momentum

    def create_spy(**options):
        loss = MixCoLoss(mix_weight=0, memory_bank_size=(8, 16))
        return Spy(create_backbone("test_resnet", 32), loss, momentum=0.9, **options)

    assert create_spy(final_momentum=1.0).current_momentum() == 0.9  # no trainer
    model = create_spy(final_momentum=1.0)
    fit(model, batches=5, max_epochs=1)
    assert model.momenta == pytest.approx([0.9, 0.9146, 0.95, 0.9854, 1.0], abs=1e-4)
    model = create_spy()
    fit(model, batches=2, max_epochs=1)
    assert model.momenta == (0.9, 0.9)
    with pytest.raises(ValueError, match=r"final_momentum must be in \[0, 1\], got 1.5"):
        create_spy(final_momentum=1.5)
