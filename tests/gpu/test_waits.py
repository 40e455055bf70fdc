"""The processor never waits for the GPU in a training step that is not logged."""

import contextlib
import warnings
from typing import get_args

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device

from mixco_lightly import KeyQueue, Mixer, Mixture, estimate_mutual_information, mix_pairs
from mixco_lightly.data.catalogue import get_dataset
from mixco_lightly.data.device_transforms import DeviceTransform
from mixco_lightly.data.mixing_names import MixingName, PairingName
from mixco_lightly.data.transforms import create_pretrain_transform
from tests.gpu.conftest import DEVICE
from tests.gpu.training import (
    DIM,
    METHODS,
    Data,
    Training,
    create_images,
    create_module,
    no_waits,
)

WARM_UP = 3  # cuDNN and the allocator may wait in the first steps


@pytest.mark.parametrize(
    "wait",
    [
        lambda: torch.ones(2, device=DEVICE).sum().item(),
        lambda: torch.ones(2).to(DEVICE),
        lambda: torch.ones(2, device=DEVICE).nonzero(),
    ],
    ids=["item", "copy", "nonzero"],
)
def test_a_planted_wait_is_found(wait):
    wait()
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"), no_waits():
        wait()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_whole_step_does_not_wait(method, dtype):
    # float16 is left out: its scaler asks the GPU in each step whether to skip it.
    training = Training(method, dtype)
    for _ in range(WARM_UP):
        training.step()
    with no_waits():
        losses = [training.step() for _ in range(5)]
    assert torch.stack(losses).isfinite().all()


class Guard(pl.Callback):
    """Lets no step of Lightning's loop wait but the first ones."""

    def __init__(self):
        self.steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.guard = contextlib.ExitStack()
        if batch_idx >= WARM_UP:
            self.guard.enter_context(no_waits())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.guard.close()
        self.steps += batch_idx >= WARM_UP

    def on_exception(self, trainer, pl_module, exception):
        self.guard.close()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_lightning_does_not_wait(method, precision, tmp_path):
    guard = Guard()
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=1,
        precision=precision,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1000,
        callbacks=[guard],
    )
    trainer.fit(create_module(method), datamodule=Data(method, batches=WARM_UP + 4))
    assert guard.steps == 4


@pytest.mark.parametrize("pinned", [True, False])
def test_lightning_moves_a_mixture_without_waiting(pinned):
    mixture = mix_pairs(torch.rand(8, 3, 16, 16))
    if pinned:
        mixture = Mixture(*(tensor.pin_memory() for tensor in mixture))
    batch = [[mixture.images, mixture.images], torch.arange(8), [mixture]]
    with no_waits():
        *_, (moved,) = move_data_to_device(batch, DEVICE)
    assert isinstance(moved, Mixture)
    for tensor, original in zip(moved, mixture, strict=True):
        assert tensor.device.type == DEVICE.type
        assert torch.equal(tensor.cpu(), original)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_mixing_does_not_wait(alpha):
    images = torch.rand(8, 3, 16, 16, device=DEVICE)
    mix_pairs(images, alpha)
    with no_waits():
        mix_pairs(images, alpha)


@pytest.mark.parametrize("mixing", get_args(MixingName))
@pytest.mark.parametrize("pairing", get_args(PairingName))
def test_a_mixer_does_not_wait(mixing, pairing):
    images = torch.rand(8, 3, 16, 16, device=DEVICE)
    mixer = Mixer(mixing, pairing, 0.5)
    mixer(images)
    with no_waits():
        mixer(images)


@pytest.mark.parametrize(
    ("method", "dataset", "size"),
    [
        ("moco", "cifar10", 32),
        ("simclr", "tiny-imagenet", 64),
        ("selfcon", "cifar100", 32),
        ("moco", "digits", 32),
        ("simclr", "imagefolder", 96),
    ],
)
def test_device_transform_does_not_wait(method, dataset, size):
    transform = DeviceTransform(create_pretrain_transform(method, get_dataset(dataset).facts, size))
    images = create_images(size=size)[0].to(DEVICE)
    for _ in range(WARM_UP):
        transform(images)
    with no_waits():
        for _ in range(10):  # each draws other images for each of its steps, at times none
            transform(images)


def test_a_queue_does_not_wait_for_its_keys():
    queue = KeyQueue((64, DIM)).to(DEVICE)
    keys = torch.randn(8, DIM, device=DEVICE)
    queue.enqueue(keys)
    with no_waits():
        for _ in range(10):
            queue.enqueue(keys)


def count_waits(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("critic", ["separable", "concatenated"])
def test_the_estimate_of_mutual_information_waits_no_more_in_more_steps(critic):
    x = torch.randn(1000, 4, device=DEVICE)
    options = {"critic": critic, "batch_size": 64, "test_pairs": 64}
    waits = [
        count_waits(lambda steps=steps: estimate_mutual_information(x, -x, steps=steps, **options))
        for steps in (50, 100)
    ]
    assert waits[0] == waits[1] > 0
