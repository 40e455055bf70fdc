"""What the tests of this folder share: training on the GPU, and a guard against waits."""

import contextlib

import pytorch_lightning as pl
import torch

from mixco_lightly import (
    IMixLoss,
    MixCoLoss,
    Mixer,
    MultiExitBackbone,
    SelfConLoss,
    UnMixLoss,
    create_backbone,
)
from mixco_lightly.data.catalogue import get_dataset
from mixco_lightly.data.device_transforms import DeviceTransform
from mixco_lightly.data.transforms import create_pretrain_transform
from mixco_lightly.models.imix import IMixMoCo
from mixco_lightly.models.moco import MoCo
from mixco_lightly.models.selfcon import SelfCon
from mixco_lightly.models.simclr import SimCLR
from tests.gpu.conftest import DEVICE

SIZE, BATCH, DIM = 32, 16, 32
MIXED_VIEWS = {"moco": (0,), "simclr": (0, 1), "selfcon": (), "selfcon-mixed": (0, 1)}
MIXED_VIEWS |= {"moco-imix": (0,), "moco-unmix": (0,)}
MIXERS = {"moco-imix": Mixer.imix("cutmix"), "moco-unmix": Mixer.unmix()}
METHODS = list(MIXED_VIEWS)


@contextlib.contextmanager
def no_waits():
    """Raises a RuntimeError where the processor waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def create_module(method):
    torch.manual_seed(0)
    if method == "moco":
        criterion = MixCoLoss(memory_bank_size=(64, DIM))
        return MoCo(create_backbone("test_resnet", SIZE), criterion, momentum=0.9)
    if method == "moco-imix":
        criterion = IMixLoss(memory_bank_size=(64, DIM))
        return IMixMoCo(create_backbone("test_resnet", SIZE), criterion, momentum=0.9)
    if method == "moco-unmix":
        criterion = UnMixLoss(memory_bank_size=(64, DIM))
        return MoCo(create_backbone("test_resnet", SIZE), criterion, momentum=0.9)
    if method == "simclr":
        return SimCLR(create_backbone("test_resnet", SIZE), MixCoLoss(0.5, 0.5), DIM)
    network = MultiExitBackbone("test_resnet", SIZE, exits=(2,))
    mix_criterion = MixCoLoss() if method == "selfcon-mixed" else None
    return SelfCon(
        network,
        SelfConLoss(),
        supervised=mix_criterion is None,
        mix_criterion=mix_criterion,
        projection_dim=DIM,
        batch_norm=True,
    )


def create_transform(method):
    facts = get_dataset("cifar10").facts
    return DeviceTransform(create_pretrain_transform(method.split("-")[0], facts, SIZE))


def mix(method, views):
    """The mixtures of a batch, as the method's recipe makes them."""
    mixer = MIXERS.get(method, Mixer())
    return [mixer(views[view]) for view in MIXED_VIEWS[method]]


def create_images(n=BATCH, size=SIZE):
    """Images as uint8 in pinned memory, as a DataLoader gives them, and their targets."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    targets = torch.arange(n) % 4
    return images.pin_memory(), targets.pin_memory()


class Training:
    """Whole training steps on the GPU, without Lightning's loop.

    Args:
        method: One of METHODS.
        dtype: Autocast's; float32 for none, and float16 with a GradScaler.
    """

    def __init__(self, method, dtype=torch.float32):
        self.method, self.dtype = method, dtype
        self.module = create_module(method).to(DEVICE, memory_format=torch.channels_last).train()
        self.trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(self.trained, lr=0.01, momentum=0.9)
        self.scaler = torch.amp.GradScaler(DEVICE.type, enabled=dtype == torch.float16)
        self.transform = create_transform(method)
        self.images, self.targets = create_images()
        self.index = 0

    def step(self):
        """One step, from the images in the host's memory to the new weights; gives the loss."""
        images = self.images.to(DEVICE, non_blocking=True)
        targets = self.targets.to(DEVICE, non_blocking=True)
        views = self.transform(images)
        mixtures = mix(self.method, views)
        with torch.autocast(DEVICE.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.module.training_step([views, targets, mixtures], self.index)
        self.index += 1  # the first step of an epoch looks at its mixtures
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


class Data(pl.LightningDataModule):
    """A few batches for Lightning's loop, augmented and mixed on the GPU as a recipe's are."""

    def __init__(self, method, batches):
        super().__init__()
        self.method, self.transform = method, create_transform(method)
        images, targets = create_images(batches * BATCH)
        self.samples = torch.utils.data.TensorDataset(images, targets)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.samples, batch_size=BATCH, pin_memory=True)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        with no_waits():
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        with no_waits():
            images, targets = batch
            views = self.transform(images)
            return [views, targets, mix(self.method, views)]
