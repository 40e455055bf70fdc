"""The learning rate's schedule under every limit that a Trainer can have, for every module."""

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from mixco_lightly import (
    IMixLoss,
    MixCoCollate,
    MixCoLoss,
    MultiExitBackbone,
    SelfConLoss,
    create_backbone,
)
from mixco_lightly.models.imix import IMixNPair
from mixco_lightly.models.moco import MoCo
from mixco_lightly.models.selfcon import SelfCon, SelfConClassifier
from mixco_lightly.models.simclr import SimCLR

HIGHEST = 0.02
# The part of the highest learning rate that the cosine of each module ends at.
ENDS = {"MoCo": 0.0, "SimCLR": 0.0, "IMixNPair": 0.0, "SelfCon": 1e-3, "SelfConClassifier": 1e-3}
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"
)


class Stream(IterableDataset):
    """Samples without a number of them."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


def create(name, **options):
    options = {"learning_rate": HIGHEST, **options}
    if name == "MoCo":
        backbone = create_backbone("test_resnet", image_size=16)
        return MoCo(backbone, MixCoLoss(memory_bank_size=(8, 16)), **options)
    if name == "SimCLR":
        return SimCLR(create_backbone("test_resnet", image_size=16), MixCoLoss(), 16, **options)
    if name == "IMixNPair":
        return IMixNPair(create_backbone("test_resnet", image_size=16), IMixLoss(), 16, **options)
    network = MultiExitBackbone("test_resnet", 16, exits=(2,))
    if name == "SelfCon":
        return SelfCon(network, SelfConLoss(), **options)
    return SelfConClassifier(network, 2, SelfConLoss(), **options)


class Rates(pl.Callback):
    """The learning rate of each optimiser step, as a part of the highest."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"] / HIGHEST)


def rates_of(model, has_length=True, batches=4, **limits):
    """Fits a module and returns the learning rates of its optimiser steps."""
    samples = [([torch.rand(3, 16, 16)] * 2, i % 2) for i in range(2 * batches)]
    data = samples if has_length else Stream(samples)
    loader = DataLoader(data, batch_size=2, collate_fn=MixCoCollate((0, 1)))
    rates = Rates()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[rates],
        **limits,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # Lightly's, of a step after the end
        trainer.fit(model, loader)
    return rates.rates


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("has_length", [True, False])
def test_with_max_steps_the_cosine_ends_in_the_last_step(name, has_length):
    rates = rates_of(create(name), has_length, max_steps=6)  # 1.5 epochs
    assert len(rates) == 6
    assert rates[0] == 1
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(ENDS[name], abs=1e-9)


@pytest.mark.parametrize("name", ENDS)
def test_with_max_steps_the_warm_up_counts_the_epochs_of_a_loader_with_a_length(name):
    rates = rates_of(create(name, warmup_epochs=0.5), max_steps=6, batches=4)
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[-1] == pytest.approx(ENDS[name], abs=1e-9)


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_epochs": 3, "max_steps": 5}, 5),
        ({"max_epochs": 1, "max_steps": 50}, 4),
        ({"max_epochs": -1, "max_steps": 5}, 5),
        ({"max_epochs": 3, "max_time": "00:01:00:00"}, 12),
        ({"max_steps": 5, "max_time": "00:01:00:00"}, 5),
        ({"max_steps": 3, "accumulate_grad_batches": 4}, 3),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 4),
    ],
    ids=str,
)
def test_the_schedule_ends_at_the_limit_that_comes_first(limits, steps):
    rates = rates_of(create("SimCLR"), **limits)
    assert len(rates) == steps
    assert rates[0] == 1
    assert rates[-1] == 0


def test_limit_train_batches_gives_a_stream_a_length():
    options = {"max_epochs": 2, "limit_train_batches": 3}
    rates = rates_of(create("SimCLR", warmup_epochs=1), has_length=False, **options)
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0, 0.5, 0.0])


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize(
    ("has_length", "limits"),
    [
        (True, {"max_time": "00:01:00:00"}),
        (True, {"max_epochs": -1}),
        (False, {"max_epochs": 2}),
        (False, {"max_time": "00:01:00:00"}),
    ],
    ids=str,
)
def test_a_training_of_unknown_length_names_max_steps(name, has_length, limits):
    with pytest.raises(ValueError, match=r"Set Trainer\(max_steps=") as raised:
        rates_of(create(name), has_length, **limits)
    assert ("has no length" in str(raised.value)) == ("max_epochs" in limits and not has_length)


def test_a_warm_up_in_epochs_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="warmup_epochs=1 needs the number of steps in an epoch"):
        rates_of(create("SimCLR", warmup_epochs=1), has_length=False, max_steps=6)


def test_a_warm_up_as_long_as_max_steps_is_an_error():
    with pytest.raises(ValueError, match=r"warmup_epochs must be in \[0, 1\.5\), got 2"):
        rates_of(create("SimCLR", warmup_epochs=2), max_steps=6, batches=4)
