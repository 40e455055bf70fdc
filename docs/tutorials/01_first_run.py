"""
First MixCo run
===============

Train MoCo v2 on the digits that scikit-learn embeds, once plain and once with MixCo, and look at
what the networks learned.

A recipe does the whole run: data, augmentations, training, evaluation, export. ``mixco-lightly
moco`` is this recipe as a command; here it is called from Python.
"""

import csv
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

from mixco_lightly import extract_features, load_backbone
from mixco_lightly.data import create_dataset
from mixco_lightly.training import load_recipe, pretrain

# %%
# The data
# --------
# 1,348 training images and 449 test images of 8x8 pixels in ten classes. The training does not use
# the classes.

digits = create_dataset("digits", "", train=True)
print(len(digits), "images of", digits[0][0].size, "pixels")

figure, axes = plt.subplots(1, 10, figsize=(8, 1.1))
for axis, (image, label) in zip(axes, digits):
    axis.imshow(image)
    axis.set_title(label)
    axis.axis("off")

# %%
# Plain MoCo v2
# -------------
# The options are those of the command. ``mix_weight=0`` leaves out MixCo's term: the same code is
# the baseline. The table at the end compares the trained network with its own random
# initialisation, by a vote of the nearest training images (kNN).

scratch = tempfile.TemporaryDirectory()  # removed when Python ends
folder = Path(scratch.name)
recipe = load_recipe("moco")
options = {
    "epochs": 10,
    "precision": "32-true",
    "protocol": ["knn"],
    "knn_every_n_epochs": 2,
    "report": False,
}
plain = pretrain(
    recipe, recipe.config_class(mix_weight=0.0, output_dir=str(folder / "plain"), **options)
)

# %%
# With MixCo
# ----------
# Half as many mixtures as images join each batch, and the loss has a second term for them.

mixco = pretrain(recipe, recipe.config_class(output_dir=str(folder / "mixco"), **options))

# %%
# Side by side
# ------------
# :func:`~mixco_lightly.training.pretrain` returns what it writes into ``summary.json``.

print(f"random initialisation: kNN {plain['random_init_knn_top1']:.1f} %")
print(f"MoCo v2:               kNN {plain['knn_top1']:.1f} %")
print(f"MoCo v2 + MixCo:       kNN {mixco['knn_top1']:.1f} %")

# %%
# ``metrics.csv`` has the course of the training. The contrast term is the loss of plain MoCo, which
# both runs have. The kNN beside it is a quick check on a fifth of the training images, 53 of which
# are classified. It shows whether a run learns. The table above has all test images.


def read_metrics(run, column):
    with open(folder / run / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row[column]]
    return {int(row["epoch"]) + 1: float(row[column]) for row in rows}


figure, axes = plt.subplots(1, 2, figsize=(8, 3))
for run, label in [("plain", "MoCo v2"), ("mixco", "MoCo v2 + MixCo")]:
    for axis, column in zip(axes, ["contrast", "knn_top1"]):
        points = read_metrics(run, column)
        axis.plot(points.keys(), points.values(), marker=".", label=label)
axes[0].set_ylabel("contrast term")
axes[1].set_ylabel("kNN while training, top-1 %")
for axis in axes:
    axis.set_xlabel("epoch")
axes[0].legend()
figure.tight_layout()

# %%
# This is one seed, few epochs and an easy dataset: it shows that both trainings work, not which
# method is better. :doc:`05_seeds` shows how to find that out, :doc:`/results` what was found.

# %%
# What the network sees
# ---------------------
# The run's folder is an exported backbone, with the transform that its images need. For six test
# digits, the training digits with the most similar features. The test digit is in the first column;
# a red label is another class.

backbone = load_backbone(folder / "mixco")
train, test = (
    extract_features(
        backbone,
        DataLoader(
            create_dataset("digits", "", train=part, transform=backbone.transform), batch_size=256
        ),
    )
    for part in (True, False)
)
similarity = torch.nn.functional.cosine_similarity(
    test.features[:6, None], train.features[None], dim=2
)
nearest = similarity.topk(7).indices

test_digits = create_dataset("digits", "", train=False)
figure, axes = plt.subplots(6, 8, figsize=(6.4, 5.4))
for index, line in enumerate(axes):
    shown = [test_digits[index], *(digits[neighbour] for neighbour in nearest[index].tolist())]
    for axis, (image, label) in zip(line, shown):
        axis.imshow(image)
        is_wrong = label != shown[0][1]
        axis.set_title(label, color="red" if is_wrong else "black", fontsize=8, pad=2)
        axis.axis("off")

agree = (train.targets[nearest] == test.targets[:6, None]).double().mean()
print(f"{100 * agree:.0f} % of these neighbours have the class of their test digit")

# %%
# The same as commands
# --------------------
# .. code-block:: sh
#
#    mixco-lightly moco --mix_weight 0 --output_dir runs/plain
#    mixco-lightly moco --output_dir runs/mixco
#
# :doc:`/your_images` trains on images of yours, and :doc:`02_your_own_loop` adds MixCo to a loop of
# yours.
