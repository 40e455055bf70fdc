# SimCLR with MixCo in PyTorch Lightning, on several GPUs.
# The lines marked "# MixCo" are the change to Lightly's own example of SimCLR.
#
# pip install mixco-lightly
#
# The settings suit a first run and are not the paper's. The batch size is for each GPU.

import pytorch_lightning as pl
import torch
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10

from mixco_lightly import MixCoCollate, MixCoLoss, create_backbone  # MixCo
from mixco_lightly.models import TimmSyncBatchNorm  # MixCo


class SimCLR(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = create_backbone("resnet18", image_size=32)  # MixCo; or another timm name
        self.projection_head = SimCLRProjectionHead(self.backbone.feature_dim, 512, 128)
        self.criterion = MixCoLoss(  # MixCo
            temperature=0.5,
            mix_temperature=0.5,
            gather_distributed=True,  # the images of all GPUs are negatives
        )

    def forward(self, x):
        return self.projection_head(self.backbone(x))

    def training_step(self, batch, batch_idx):
        x0, x1 = batch[0]
        mixture0, mixture1 = batch[-1]  # MixCo
        z0, z1 = self.forward(x0), self.forward(x1)
        mixed0, mixed1 = self.forward(mixture0.images), self.forward(mixture1.images)  # MixCo
        loss = self.criterion(z0, z1, mixed0, mixture0, mixed1, mixture1)  # MixCo
        self.log("loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.06)


if __name__ == "__main__":  # the DataLoader's workers may import this file
    model = SimCLR()

    transform = SimCLRTransform(input_size=32, gaussian_blur=0.0)
    # Or images of your own: LightlyDataset("path/to/folder", transform=transform).
    dataset = CIFAR10("data", download=True, transform=transform)
    dataloader = DataLoader(
        dataset,
        batch_size=256,
        shuffle=True,
        drop_last=True,
        num_workers=8,
        collate_fn=MixCoCollate(views=(0, 1)),  # MixCo
    )

    trainer = pl.Trainer(
        max_epochs=10,
        devices="auto",
        accelerator="gpu",
        strategy="ddp",
        # As sync_batchnorm=True, but timm's layers keep their activations.
        plugins=[TimmSyncBatchNorm()],  # MixCo
    )
    trainer.fit(model, dataloader)
