"""Whole training steps on the pretended GPU: values and gradients of the CPU, and no wait."""

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device

from mixco_lightly import MixCoCollate
from tests.models.test_batches import create, samples_of
from tests.pretended_gpu import pretended_gpu

DEVICE = torch.device("cuda", 0)
METHODS = ["moco", "unmix", "imix", "npair", "simclr", "selfcon", "classifier"]


def attach(model):
    """Gives a module a trainer that logs every step, and a place for its logs."""
    model.trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=1
    )
    model.logged = {}
    model.log_dict = lambda values, **_: model.logged.update(values)
    return model.train()


def train(model, batch, first_step=1, steps=2):
    """Losses of a few steps of SGD; not the first of an epoch, whose batch is looked at."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for step in range(first_step, first_step + steps):
        optimizer.zero_grad()
        loss = model.training_step(batch, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("name", METHODS)
def test_steps_on_a_gpu_are_those_on_the_cpu_without_waits(name):
    batch = MixCoCollate((0, 1))(samples_of(16, 16))
    model, twin = attach(create(name)), attach(create(name))
    expected = train(model, batch)
    with pretended_gpu() as gpu:
        twin.to(DEVICE)
        gpu.waits.clear()
        batch = move_data_to_device(batch, DEVICE)
        losses = train(twin, batch)
        assert gpu.waits == []
        losses = [gpu.values(loss) for loss in losses]
        state = {name: gpu.values(tensor) for name, tensor in twin.state_dict().items()}
        logged = {name: gpu.values(value) for name, value in twin.logged.items()}
    # The convolutions' gradients are summed in another order.
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, dict(model.state_dict()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        logged, {name: value.detach() for name, value in model.logged.items()}, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["moco", "imix", "npair", "simclr", "selfcon"])
def test_only_the_first_step_of_an_epoch_looks_at_the_mixtures(name):
    batch = MixCoCollate((0, 1))(samples_of(16, 16))
    model = attach(create(name))
    with pretended_gpu() as gpu:
        model.to(DEVICE)
        batch = move_data_to_device(batch, DEVICE)
        gpu.waits.clear()
        train(model, batch, first_step=0, steps=1)
        assert gpu.waits
        assert all("collate.py" in wait for wait in gpu.waits)
        gpu.waits.clear()
        train(model, batch, first_step=1, steps=1)
        assert gpu.waits == []


def test_mixtures_of_the_wrong_view_are_found_on_a_gpu_too():
    batch = MixCoCollate((1,))(samples_of(16, 16))
    model = attach(create("moco"))
    with pretended_gpu():
        model.to(DEVICE)
        batch = move_data_to_device(batch, DEVICE)
        with pytest.raises(ValueError, match=r"of view 0 are needed, .* of view 1: set views"):
            model.training_step(batch, 0)
