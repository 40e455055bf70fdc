# SimCLR with MixCo in a plain PyTorch loop.
# The lines marked "# MixCo" are the change to Lightly's own example of SimCLR.
#
# pip install mixco-lightly
#
# The settings suit a first run on one GPU and are not the paper's.

import torch
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10

from mixco_lightly import MixCoCollate, MixCoLoss, create_backbone  # MixCo


class SimCLR(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(backbone.feature_dim, 512, 128)

    def forward(self, x):
        return self.projection_head(self.backbone(x))


if __name__ == "__main__":  # the DataLoader's workers may import this file
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = create_backbone("resnet18", image_size=32)  # MixCo; or another timm name
    model = SimCLR(backbone).to(device)

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

    criterion = MixCoLoss(temperature=0.5, mix_temperature=0.5)  # MixCo
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)

    for epoch in range(10):
        total_loss = 0
        for batch in dataloader:
            x0, x1 = (view.to(device) for view in batch[0])
            mixture0, mixture1 = (mixture.to(device) for mixture in batch[-1])  # MixCo
            z0, z1 = model(x0), model(x1)
            mixed0, mixed1 = model(mixture0.images), model(mixture1.images)  # MixCo
            loss = criterion(z0, z1, mixed0, mixture0, mixed1, mixture1)  # MixCo
            total_loss += loss.detach()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch: {epoch:>02}, loss: {total_loss / len(dataloader):.5f}")
