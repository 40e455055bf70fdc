# MoCo v2 with MixCo in PyTorch Lightning.
# The lines marked "# MixCo" are the change to Lightly's own example of MoCo.
#
# pip install mixco-lightly
#
# The settings suit a first run on one GPU and are not the paper's.

import copy

import pytorch_lightning as pl
import torch
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform
from lightly.utils.scheduler import cosine_schedule
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10

from mixco_lightly import MixCoCollate, MixCoLoss, create_backbone  # MixCo


class MoCo(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = create_backbone("resnet18", image_size=32)  # MixCo; or another timm name
        self.projection_head = MoCoProjectionHead(self.backbone.feature_dim, 512, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = MixCoLoss(memory_bank_size=(4096, 128))  # MixCo

    def forward(self, x):
        return self.projection_head(self.backbone(x))

    @torch.no_grad()
    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x))

    def training_step(self, batch, batch_idx):
        momentum = cosine_schedule(self.current_epoch, self.trainer.max_epochs, 0.996, 1)
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)
        x_query, x_key = batch[0]
        mixture = batch[-1][0]  # MixCo
        images = torch.cat([x_query, mixture.images])  # MixCo
        query, mixed = self.forward(images).split([len(x_query), len(mixture.images)])  # MixCo
        key = self.forward_momentum(x_key)
        loss = self.criterion(query, key, mixed, mixture)  # MixCo
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.06)


if __name__ == "__main__":  # the DataLoader's workers may import this file
    model = MoCo()

    transform = MoCoV2Transform(input_size=32)
    # Or images of your own: LightlyDataset("path/to/folder", transform=transform).
    dataset = CIFAR10("data", download=True, transform=transform)
    dataloader = DataLoader(
        dataset,
        batch_size=256,
        shuffle=True,
        drop_last=True,
        num_workers=8,
        collate_fn=MixCoCollate(),  # MixCo
    )

    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    trainer = pl.Trainer(max_epochs=10, devices=1, accelerator=accelerator)
    trainer.fit(model, dataloader)
