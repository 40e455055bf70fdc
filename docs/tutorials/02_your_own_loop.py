"""
MixCo in an existing MoCo loop
==============================

A MoCo loop with Lightly's parts becomes MixCo by three changed lines. We write the loop, change it,
and run both.
"""

import copy

import matplotlib.pyplot as plt
import timm
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from mixco_lightly import MixCoCollate, MixCoLoss, extract_features, knn_probe
from mixco_lightly.data import create_dataset

# %%
# What you have
# -------------
# A dataset whose transform returns two views, a backbone, and Lightly's head. Any network that
# returns one vector for each image will do. Digits are grey and must not be mirrored, so we switch
# these augmentations off.

MEAN, STD, EPOCHS = [0.305] * 3, [0.376] * 3, 8
transform = MoCoV2Transform(
    input_size=16,
    min_scale=0.5,
    hf_prob=0.0,
    cj_prob=0.0,
    random_gray_scale=0.0,
    gaussian_blur=0.0,
    rr_prob=0.5,
    rr_degrees=15,
    normalize={"mean": MEAN, "std": STD},
)
dataset = create_dataset("digits", "", train=True, transform=transform)


def create_model():
    torch.manual_seed(0)
    backbone = timm.create_model("test_resnet", num_classes=0)
    encoder = torch.nn.Sequential(backbone, MoCoProjectionHead(backbone.num_features, 96, 128))
    momentum_encoder = copy.deepcopy(encoder)
    deactivate_requires_grad(momentum_encoder)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    return encoder, momentum_encoder, optimizer, scheduler


# %%
# Your loop
# ---------


def train_moco():
    encoder, momentum_encoder, optimizer, scheduler = create_model()
    loader = DataLoader(
        dataset,
        batch_size=64,
        shuffle=True,
        drop_last=True,
    )
    criterion = NTXentLoss(temperature=0.2, memory_bank_size=(1024, 128))
    losses = []
    for _ in range(EPOCHS):
        for batch in loader:
            query_view, key_view = batch[0]
            update_momentum(encoder, momentum_encoder, m=0.99)
            queries = encoder(query_view)
            with torch.no_grad():
                keys = momentum_encoder(key_view)
            loss = criterion(queries, keys)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
    return encoder[0], losses


# %%
# With MixCo
# ----------
# The collate function, the loss and its call change; the lines are marked. ``mix_temperature``
# divides the similarities of mixtures. Its default 0.1 was measured on photographs; the recipes
# take 0.2 on the digits.


def train_mixco():
    encoder, momentum_encoder, optimizer, scheduler = create_model()
    loader = DataLoader(
        dataset,
        batch_size=64,
        shuffle=True,
        drop_last=True,
        collate_fn=MixCoCollate(),  # MixCo
    )
    criterion = MixCoLoss(mix_temperature=0.2, memory_bank_size=(1024, 128))  # MixCo
    losses = []
    for _ in range(EPOCHS):
        for batch in loader:
            query_view, key_view = batch[0]
            update_momentum(encoder, momentum_encoder, m=0.99)
            queries = encoder(query_view)
            with torch.no_grad():
                keys = momentum_encoder(key_view)
            loss = criterion(queries, keys, encoder(batch[-1][0].images), batch[-1][0])  # MixCo
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
    return encoder[0], losses


# %%
# What the collate function adds
# ------------------------------
# Views and labels stay where they were. The last element of a batch is new: a list with the
# mixtures of the query view, their pairs and weights.

torch.manual_seed(0)
batch = next(iter(DataLoader(dataset, batch_size=16, collate_fn=MixCoCollate())))
(query_view, key_view), labels, (mixture,) = batch
print("views   ", tuple(query_view.shape), tuple(key_view.shape))
print("mixtures", tuple(mixture.images.shape))

rows = {
    "query view": query_view[mixture.first],
    "its partner": query_view[mixture.second],
    "mixture": mixture.images,
}
figure, axes = plt.subplots(3, 8, figsize=(8, 3.4))
for line, (name, images) in zip(axes, rows.items()):
    for axis, image in zip(line, images):
        axis.imshow(image[0], cmap="gray")
        axis.set_xticks([])
        axis.set_yticks([])
    line[0].set_ylabel(name)
for axis, weight in zip(axes[2], mixture.lam):
    axis.set_xlabel(f"lam {weight:.2f}")
figure.tight_layout()

# %%
# Your baseline stays
# -------------------
# Without mixtures, ``MixCoLoss`` computes what Lightly's ``NTXentLoss`` computes. Both get the same
# projections here, without queues, because each queue starts with random keys of its own.

queries, keys = torch.randn(2, 64, 128)
ours, lightlys = MixCoLoss(temperature=0.2), NTXentLoss(temperature=0.2)
print(f"MixCoLoss {ours(queries, keys):.6f}   NTXentLoss {lightlys(queries, keys):.6f}")

# %%
# Run both
# --------

test_transform = Compose([Resize(16), ToTensor(), Normalize(MEAN, STD)])
train_loader, test_loader = (
    DataLoader(create_dataset("digits", "", train=part, transform=test_transform), batch_size=256)
    for part in (True, False)
)


def measure(backbone):
    train, test = (extract_features(backbone, loader) for loader in (train_loader, test_loader))
    return knn_probe(train, test, k=20).top1


print(f"random initialisation  kNN {measure(create_model()[0][0]):.1f} %")
curves = {}
for name, train in [("MoCo", train_moco), ("MoCo + MixCo", train_mixco)]:
    backbone, curves[name] = train()
    print(f"{name:21}  kNN {measure(backbone):.1f} %   last loss {curves[name][-1]:.2f}")

# %%
# One seed and a few epochs show that the loop works, not which method is better: :doc:`05_seeds`.
#
# MixCo's loss is a sum of two terms, so it is higher than the plain one. Both rise at first: the
# queue starts with random keys, which are easy negatives, until the keys of images have replaced
# them.

figure, axis = plt.subplots(figsize=(6, 2.8))
for name, losses in curves.items():
    axis.plot(range(1, len(losses) + 1), losses, label=name)
axis.set_xlabel("step")
axis.set_ylabel("loss")
axis.legend()
figure.tight_layout()

# %%
# ``forward_components`` returns the terms one by one, for your logger. The contrast term is the
# plain loss. Here the projections are random:

criterion = MixCoLoss(temperature=0.2)
mixed = torch.randn(len(mixture.images), 128)
components = criterion.forward_components(queries[:16], keys[:16], mixed, mixture)
for name, value in components._asdict().items():
    print(f"{name:9} {value:.3f}")

# %%
# On a GPU, move the mixture as you move the views: ``mixture = batch[-1][0].to(device)``.
# :doc:`/pipelines` has SimCLR, Lightning, and mixing on the device without a collate function.
