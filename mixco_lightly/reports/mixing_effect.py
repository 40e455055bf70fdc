"""What mixing did: how similar a mixture's projection is to those of its two sources."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from mixco_lightly.data.mixing import mixup, pair_halves
from mixco_lightly.reports.charts import Chart, Line, draw_lines

# Pairs of images, and weights for each of them.
MAX_PAIRS = 32
_WEIGHTS = 11


class MixingEffect(NamedTuple):
    """Means over pairs of images, for each weight.

    Attributes:
        lam: Weights of the first images.
        first: Cosine similarity of a mixture's and its first image's projections.
        second: The same for the second image.
        share: The first image's share in the softmax over the two similarities, divided by the
            temperature. The soft cross-entropy of MixCo is smallest where it is the weight.
    """

    lam: list[float]
    first: list[float]
    second: list[float]
    share: list[float]

    @property
    def distance(self) -> float:
        """Mean distance of the shares from the weights."""
        pairs = list(zip(self.share, self.lam, strict=True))
        return sum(abs(share - lam) for share, lam in pairs) / len(pairs)


def find_head(model: nn.Module) -> nn.Module | None:
    """Returns the projection head of a model's backbone; None if it has none."""
    head = getattr(model, "projection_head", None)
    heads = getattr(model, "projection_heads", None)
    if isinstance(heads, nn.ModuleList) and len(heads):
        head = heads[-1]  # the others are those of sub-networks
    return head if isinstance(head, nn.Module) else None


@torch.no_grad()
def measure_mixing(
    backbone: nn.Module,
    head: nn.Module,
    images: Tensor,
    temperature: float,
    device: torch.device | str = "cpu",
) -> MixingEffect:
    """Projects weighted sums of pairs of images, in eval mode, and compares them with the images.

    Args:
        backbone: Maps images to features.
        head: Maps features to projections.
        images: At least two images, shape (N, C, H, W). The first half is mixed with the second.
        temperature: Divides the similarities, as ``mix_temperature`` of the loss does.
        device: Where to run. The networks are moved back afterwards.
    """
    modules = [backbone, head]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    homes = [next((x.device for x in module.parameters()), None) for module in modules]
    lam = torch.linspace(0, 1, _WEIGHTS, device=device)
    rows = []
    try:
        for module in modules:
            module.to(device).eval()
        images = images.to(device)
        first, second = pair_halves(len(images), device)

        def project(x: Tensor) -> Tensor:
            # A compiled head would be compiled again for these sizes.
            return head.forward(backbone.forward(x).float()).float()

        z = project(images)
        for weight in lam:
            mixture = mixup(images, first, second, weight.expand(len(first)))
            mixed = project(mixture.images)
            to_first, to_second = (cosine_similarity(mixed, z[part]) for part in (first, second))
            share = ((to_first - to_second) / temperature).sigmoid()
            rows.append([x.mean().item() for x in (to_first, to_second, share)])
    finally:
        for module, home in zip(modules, homes, strict=True):
            if home is not None:
                module.to(home)
        for part, training in modes:
            part.training = training
    columns = [list(column) for column in zip(*rows, strict=True)]
    return MixingEffect(lam.tolist(), *columns)


def draw_mixing(before: MixingEffect, after: MixingEffect) -> list[Chart]:
    """Draws the similarities and the shares, before and after training."""
    lines = [
        Line(f"to {name}, {when}", effect.lam, values, None, colour, effect is before)
        for effect, when in [(before, "before"), (after, "after")]
        for colour, (name, values) in enumerate(
            [("the first", effect.first), ("the second", effect.second)]
        )
    ]
    shares = [
        Line("before training", before.lam, before.share, None, 0, True),
        Line("after training", after.lam, after.share, None, 0),
    ]
    weight = "weight λ of the first image"
    return [
        draw_lines("Similarity to the two sources", weight, "cosine similarity", lines),
        draw_lines("Share of the first source", weight, "share in the softmax", shares, True),
    ]
