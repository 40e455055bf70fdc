"""
Evaluate honestly with seeds
============================

Is MixCo better than plain MoCo here? One run of each cannot say. We train both with several seeds,
measure the frozen features, and compare the runs that share a seed.

The answer is for this setting only: 1,348 small digits, a small network and a few epochs.
:doc:`/results` has studies on larger datasets.
"""

import copy

import matplotlib.pyplot as plt
import torch
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor

from mixco_lightly import (
    MixCoLoss,
    create_backbone,
    extract_features,
    knn_probe,
    linear_probe,
    mix_pairs,
)
from mixco_lightly.data import (
    DeviceTransform,
    create_dataset,
    create_pretrain_transform,
    create_test_transform,
    get_dataset,
)
from mixco_lightly.studies import paired_difference

IMAGE_SIZE, EPOCHS, SEEDS = 16, 8, range(4)
facts = get_dataset("digits").facts
images = torch.stack(
    [pil_to_tensor(image) for image, _ in create_dataset("digits", "", train=True)]
)
augment = DeviceTransform(create_pretrain_transform("moco", facts, IMAGE_SIZE))

# %%
# One run
# -------
# The seed decides the initial weights, the order of the images, the augmentations and the mixtures.
# Both methods start from the same weights. ``mix_weight=0`` is the baseline: it differs in nothing
# else.


def create_seeded_backbone(seed):
    torch.manual_seed(seed)
    backbone = create_backbone("test_resnet", IMAGE_SIZE, stem="timm")
    return backbone.to(memory_format=torch.channels_last)  # convolutions are faster so


def train(seed, mix_weight):
    backbone = create_seeded_backbone(seed)
    encoder = torch.nn.Sequential(backbone, MoCoProjectionHead(backbone.feature_dim, 96, 128))
    momentum_encoder = copy.deepcopy(encoder)
    deactivate_requires_grad(momentum_encoder)
    criterion = MixCoLoss(mix_temperature=0.2, mix_weight=mix_weight, memory_bank_size=(1024, 128))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for indices in torch.randperm(len(images)).split(128):
            query_view, key_view = augment(images[indices])
            update_momentum(encoder, momentum_encoder, m=0.99)
            # Drawn for the baseline too, so that both methods see the same views.
            mixture = mix_pairs(query_view)
            with torch.no_grad():
                keys = momentum_encoder(key_view)
            if mix_weight > 0:
                both = encoder(torch.cat([query_view, mixture.images]))
                queries, mixed = both.split([len(query_view), len(mixture.images)])
                loss = criterion(queries, keys, mixed, mixture)
            else:
                loss = criterion(encoder(query_view), keys)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    return backbone


# %%
# What is measured
# ----------------
# The features of the last epoch, extracted once without augmentation, by two classifiers:
# neighbours (kNN) and a linear probe. The probe chooses its learning rate on a tenth of the
# training features. The test images choose nothing.

test_transform = create_test_transform(facts, IMAGE_SIZE)
train_batches, test_batches = (
    list(DataLoader(create_dataset("digits", "", part, test_transform), batch_size=256))
    for part in (True, False)
)


def measure(backbone):
    train_features = extract_features(backbone, train_batches)
    test_features = extract_features(backbone, test_batches)
    linear = linear_probe(train_features, test_features, epochs=50, learning_rate=[0.01, 0.1])
    return {
        "knn_top1": knn_probe(train_features, test_features, k=20).top1,
        "linear_top1": linear.top1,
    }


# %%
# All runs
# --------
# Untrained networks are measured too. What they reach is no merit of the training.

ARMS = {
    "random": create_seeded_backbone,
    "plain": lambda seed: train(seed, mix_weight=0.0),
    "MixCo": lambda seed: train(seed, mix_weight=1.0),
}
rows = []
for seed in SEEDS:
    for arm, create in ARMS.items():
        row = {"group": "", "arm": arm, "seed": seed, **measure(create(seed))}
        rows.append(row)
        print(f"seed {seed}  {arm:6}  kNN {row['knn_top1']:.1f}  linear {row['linear_top1']:.1f}")

# %%
# Mean and spread
# ---------------
# The standard deviation tells how far one run may lie from another of the same method.

FIGURES = {"knn_top1": "kNN", "linear_top1": "linear probe"}


def accuracies(arm, figure):
    return torch.tensor([row[figure] for row in rows if row["arm"] == arm])


for arm in ARMS:
    columns = [accuracies(arm, figure) for figure in FIGURES]
    texts = [f"{x.mean():.1f} ± {x.std():.1f}" for x in columns]
    print(f"{arm:6}", *(f"{name}: {text}  " for name, text in zip(FIGURES.values(), texts)))

# %%
# Differences, paired by seed
# ---------------------------
# Runs with one seed share their initial weights, the order of the images and their views, so part
# of what seeds change may cancel in the difference. The interval is Student's, for 95%. If it
# contains 0, these runs do not tell which method is ahead.

for base, arm in [("random", "plain"), ("random", "MixCo"), ("plain", "MixCo")]:
    for figure, name in FIGURES.items():
        difference = paired_difference(rows, figure, "", (base, arm))
        mean, half_width = difference.mean, difference.half_width
        interval = f"[{mean - half_width:+5.1f}, {mean + half_width:+5.1f}]"
        ahead = arm if mean > 0 else base
        verdict = "not decided" if abs(mean) <= half_width else f"{ahead} is ahead"
        print(f"{arm:5} - {base:6}  {name:12}  {mean:+5.1f} {interval}  {verdict}")

# %%
# One line is one seed. Where lines cross, the best method depends on the seed:

figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
for axis, (key, name) in zip(axes, FIGURES.items()):
    for values in zip(*(accuracies(arm, key).tolist() for arm in ARMS)):
        axis.plot(list(ARMS), values, marker="o", markersize=4, linewidth=1)
    axis.set_title(name)
    axis.set_ylabel("top-1 %")
figure.tight_layout()

# %%
# What this allows to say
# -----------------------
# - The seeds here vary everything except the images. Other images may give other differences, and
#   an interval over seeds does not cover that.
# - There are two measures and three comparisons. Of many intervals for 95%, some miss the truth by
#   chance: decide beforehand which one counts.
# - Both methods trained for as many epochs. A step with mixtures costs more, because half as many
#   images more go through the encoder. At equal compute the difference may be another.
# - Nothing was tuned here. If you tune, tune both methods equally, on held-out training images:
#   :doc:`/protocol` has the rules.
#
# ``mixco-lightly compare`` does all of this for recipes, and goes on after an interruption:
# :doc:`/recipes`.
