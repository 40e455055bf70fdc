# MoCo v2 with MixCo in a plain PyTorch loop.
# The lines marked "# MixCo" are the change to Lightly's own example of MoCo.
#
# pip install mixco-lightly
#
# The settings suit a first run on one GPU and are not the paper's.

import copy

import torch
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform
from lightly.utils.scheduler import cosine_schedule
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10

from mixco_lightly import MixCoCollate, MixCoLoss, create_backbone  # MixCo


class MoCo(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = MoCoProjectionHead(backbone.feature_dim, 512, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x):
        return self.projection_head(self.backbone(x))

    @torch.no_grad()
    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x))


if __name__ == "__main__":  # the DataLoader's workers may import this file
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = create_backbone("resnet18", image_size=32)  # MixCo; or another timm name
    model = MoCo(backbone).to(device)

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

    criterion = MixCoLoss(memory_bank_size=(4096, 128))  # MixCo
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)

    epochs = 10
    for epoch in range(epochs):
        total_loss = 0
        momentum = cosine_schedule(epoch, epochs, 0.996, 1)
        for batch in dataloader:
            x_query, x_key = (view.to(device) for view in batch[0])
            mixture = batch[-1][0].to(device)  # MixCo
            update_momentum(model.backbone, model.backbone_momentum, m=momentum)
            update_momentum(model.projection_head, model.projection_head_momentum, m=momentum)
            images = torch.cat([x_query, mixture.images])  # MixCo
            query, mixed = model(images).split([len(x_query), len(mixture.images)])  # MixCo
            key = model.forward_momentum(x_key)
            loss = criterion(query, key, mixed, mixture)  # MixCo
            total_loss += loss.detach()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch: {epoch:>02}, loss: {total_loss / len(dataloader):.5f}")
