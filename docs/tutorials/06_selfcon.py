"""
SelfCon and its exits
=====================

SelfCon gives a network exits at several depths, and contrasts what they say about one image. With
labels it needs no second view. We train one network with labels and one without, and measure each
exit.
"""

import matplotlib.pyplot as plt
import torch
from lightly.models.modules import MoCoProjectionHead
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor

from mixco_lightly import MultiExitBackbone, SelfConLoss, extract_features
from mixco_lightly.data import (
    DeviceTransform,
    create_dataset,
    create_pretrain_transform,
    create_test_transform,
    get_dataset,
)
from mixco_lightly.evaluation import exit_probe

# %%
# A network with three exits
# --------------------------
# ``exits`` are stages of timm's network. A sub-network follows each of them; here it is the
# smallest, a pool and a linear layer. The last output is the backbone's own. All outputs have the
# same width.


def create_network(seed=0):
    torch.manual_seed(seed)
    return MultiExitBackbone("test_resnet", image_size=16, exits=(1, 2), stem="timm")


network = create_network()
EXITS = ["stage 1", "stage 2", "backbone"]
for name, output in zip(EXITS, network(torch.rand(8, 3, 16, 16))):
    print(f"{name:8}", tuple(output.shape))
for name, subnetwork in zip(EXITS, network.subnetworks):
    print(
        f"{name:8}",
        sum(x.numel() for x in subnetwork.parameters()),
        "parameters in its sub-network",
    )

# %%
# Augmented views
# ---------------

facts = get_dataset("digits").facts
dataset = create_dataset("digits", "", train=True)
images = torch.stack([pil_to_tensor(image) for image, _ in dataset])
labels = torch.tensor(dataset.targets)


def create_augmentation(num_views):
    return DeviceTransform(create_pretrain_transform("selfcon", facts, 16, num_views=num_views))


(views,) = create_augmentation(1)(images[:8])
figure, axes = plt.subplots(1, 8, figsize=(8, 1.2))
for axis, view in zip(axes, views):
    axis.imshow(view[0], cmap="gray")
    axis.axis("off")

# %%
# Training
# --------
# Each exit has a projection head. The loss takes all exits at once, of shape (rows, exits,
# dimensions), the backbone's last. A row is one view of one image. Each output is an anchor, and
# its positives are the other exits' outputs of its row. With labels, all outputs of the same class
# are positives too, and one view is enough. Without labels we give the network two views, and
# ``num_views=2`` makes the outputs of both positives of each other.


EPOCHS = 12


def train(supervised):
    num_views = 1 if supervised else 2
    augment = create_augmentation(num_views)
    network = create_network()
    heads = torch.nn.ModuleList(
        MoCoProjectionHead(network.feature_dim, 96, 64, batch_norm=True) for _ in EXITS
    )
    criterion = SelfConLoss(num_views=num_views)
    parameters = [*network.parameters(), *heads.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    losses = []
    for _ in range(EPOCHS):
        batches = torch.randperm(len(images))[: len(images) // 128 * 128].split(128)
        total = 0.0
        for indices in batches:
            rows = torch.cat(augment(images[indices]))
            projections = [head(output) for head, output in zip(heads, network(rows))]
            z = torch.stack(projections, dim=1)  # rows x exits x dimensions
            loss = criterion(z, labels[indices] if supervised else None)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(batches))
        scheduler.step()
    return network, losses


networks, losses = {"untrained": create_network()}, {}
for name, supervised in [("with labels", True), ("without labels", False)]:
    networks[name], losses[name] = train(supervised)
    print(f"{name:14}  loss {losses[name][0]:.2f} -> {losses[name][-1]:.2f}")

# %%
# The two losses have different numbers of positives, so only their course can be compared:

figure, axis = plt.subplots(figsize=(5, 2.8))
for name, values in losses.items():
    axis.plot(range(1, EPOCHS + 1), values, label=name)
axis.set_xlabel("epoch")
axis.set_ylabel("loss")
axis.legend()
figure.tight_layout()

# %%
# Accuracy of each exit
# ---------------------
# ``exit_probe`` trains a linear classifier on the frozen features of each exit, and adds an
# ensemble that averages their logits. :func:`~mixco_lightly.extract_features` takes a network with
# one output, so we stack the exits.


class Stacked(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return torch.stack(self.network(images), dim=1)


test_transform = create_test_transform(facts, 16)
train_loader, test_loader = (
    DataLoader(create_dataset("digits", "", train=part, transform=test_transform), batch_size=256)
    for part in (True, False)
)

test_features, top1 = {}, {}
for name, network in networks.items():
    train_features = extract_features(Stacked(network), train_loader)
    test_features[name] = extract_features(Stacked(network), test_loader)
    top1[name] = [r.top1 for r in exit_probe(train_features, test_features[name], epochs=50)]

print(f"{'top-1 %':15}", *(f"{column:>9}" for column in [*EXITS, "ensemble"]))
for name, accuracies in top1.items():
    print(f"{name:15}", *(f"{accuracy:9.1f}" for accuracy in accuracies))

# %%
# An early exit needs only the stages before it, so its accuracy shows what a cheaper network would
# reach.

figure, axis = plt.subplots(figsize=(6.4, 3))
for index, (name, accuracies) in enumerate(top1.items()):
    positions = [exit + 0.26 * (index - 1) for exit in range(len(accuracies))]
    axis.bar(positions, accuracies, width=0.24, label=name)
axis.set_xticks(range(len(EXITS) + 1), [*EXITS, "ensemble"])
axis.set_ylabel("top-1 %")
axis.set_ylim(min(map(min, top1.values())) - 5, 100)
axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
figure.tight_layout()

# %%
# What the exits see
# ------------------
# The first two principal components of the test images' features, coloured by digit:

figure, axes = plt.subplots(len(networks), len(EXITS), figsize=(7.2, 7.2))
for line, (name, (features, targets)) in zip(axes, test_features.items()):
    for axis, exit_features in zip(line, features.unbind(1)):
        centred = exit_features - exit_features.mean(dim=0)
        plane = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
        axis.scatter(*plane.T, c=targets, cmap="tab10", s=4)
        axis.set_xticks([])
        axis.set_yticks([])
    line[0].set_ylabel(name)
for axis, exit_name in zip(axes[0], EXITS):
    axis.set_title(exit_name)
figure.tight_layout()

# %%
# This is one seed, on an easy dataset of 449 test images: one image is 0.2 points. Small
# differences between rows mean nothing here; :doc:`05_seeds` shows how to compare. The network that
# trained with labels has seen the training labels twice, in the loss and in the probe; the others
# only in the probe.
#
# ``mixco-lightly selfcon`` trains SelfCon with one view or two, with MixCo or with classifiers on
# all exits: :doc:`/recipes`.
