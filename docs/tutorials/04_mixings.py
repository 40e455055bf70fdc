"""
Mixings seen
============

What MixCo, i-Mix, Un-Mix and MixMask feed to the network, drawn from two photographs.

scikit-learn ships two photographs. We cut small squares from both, and let each mixer pair them.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_sample_images

from mixco_lightly import Mixer

# %%
# A batch of eight squares
# ------------------------
# The first four come from the temple, the others from the flower.


def squares(photo, tops, lefts, side=128):
    image = torch.from_numpy(photo).permute(2, 0, 1) / 255
    return [image[:, top : top + side, left : left + side] for top, left in zip(tops, lefts)]


temple, flower = load_sample_images().images
images = torch.stack(
    squares(temple, [20, 90, 150, 210], [60, 250, 400, 180])
    + squares(flower, [60, 120, 170, 250], [170, 330, 240, 380])
)


def draw_rows(rows, labels):
    """Draws rows of (C, H, W) images with a label on the left of each row."""
    columns = max(map(len, rows))
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.4 * columns, 1.5 * len(rows)), squeeze=False
    )
    for line, row, label in zip(axes, rows, labels):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        for axis, image in zip(line, row):
            axis.imshow(image.permute(1, 2, 0))
        line[0].set_ylabel(label)
    figure.tight_layout()


draw_rows([images[:4], images[4:]], ["temple", "flower"])

# %%
# MixCo pairs the halves of a batch
# ---------------------------------
# Each pair has its own weight. ``first`` and ``second`` are indices into the batch, and ``lam`` is
# the weight of the first image: this is all that a loss needs to know of a mixture.

generator = torch.Generator().manual_seed(1)
mixture = Mixer.mixco()(images, generator)
print("first ", mixture.first.tolist())
print("second", mixture.second.tolist())
print("lam   ", [round(weight, 2) for weight in mixture.lam.tolist()])

draw_rows(
    [images[mixture.first], mixture.images, images[mixture.second]], ["first", "mixture", "second"]
)

# %%
# The images of a mixture are what the indices say. For ``mixup`` this is a weighted sum:

lam = mixture.lam.view(-1, 1, 1, 1)
again = lam * images[mixture.first] + (1 - lam) * images[mixture.second]
print("largest difference:", (again - mixture.images).abs().max().item())

# %%
# The mixers of the family
# ------------------------
# MixCo has half as many mixtures as images. The others have one mixture for each image: i-Mix pairs
# by a random permutation, and the larger weight is on the image itself. Un-Mix and MixMask pair the
# batch with itself in reverse order, with one weight for the whole batch.

mixers = {
    "MixCo": Mixer.mixco(),
    "MixCo, cutmix": Mixer.mixco("cutmix"),
    "i-Mix": Mixer.imix(),
    "i-CutMix": Mixer.imix("cutmix"),
    "Un-Mix": Mixer.unmix(),
    "MixMask": Mixer.mixmask(),
}
mixtures = {name: mixer(images, generator) for name, mixer in mixers.items()}
draw_rows([mixture.images for mixture in mixtures.values()], mixtures)

# %%
# For ``cutmix`` and masks, ``lam`` is the part of the area that shows the first image. The weights
# tell the methods apart:

for name, mixture in mixtures.items():
    print(f"{name:14}", " ".join(f"{weight:.2f}" for weight in mixture.lam.tolist()))

# %%
# How the weights are distributed
# -------------------------------
# ``alpha`` decides how even mixtures are: with 1 every weight is equally likely, below 1 most
# mixtures are nearly one of their images, above 1 most are halves.

from mixco_lightly.data import beta_weights

figure, axis = plt.subplots(figsize=(6, 2.8))
for alpha in (0.3, 1.0, 4.0):
    weights = beta_weights(20_000, alpha, generator=generator)
    axis.hist(weights.numpy(), bins=50, histtype="step", density=True, label=f"alpha = {alpha}")
axis.set_xlabel("lam")
axis.set_ylabel("density")
axis.legend()
figure.tight_layout()

# %%
# :doc:`/mixing` compares what each method makes of its mixtures, and what a step costs.
