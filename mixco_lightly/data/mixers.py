"""The mixer: one choice of mixing, pairing and weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from mixco_lightly.data.mixing import (
    cutmix,
    mask_mix,
    mixup,
    mixup_or_cutmix,
    pair_halves,
    pair_permuted,
    pair_reversed,
)
from mixco_lightly.data.mixing_names import MixingName, PairingName
from mixco_lightly.data.mixture import (
    Mixture,
    beta_weights,
    check_alpha,
    check_images,
    weight_dtype,
)


@dataclass(frozen=True)
class Mixer:
    """Mixes the images of a batch in pairs.

    ``mixer(images, generator=None)`` returns a :class:`Mixture`. The default is
    :func:`mix_pairs`, with the same random numbers. The authors' settings:

    - ``Mixer.mixco()``: MixCo, https://arxiv.org/abs/2010.06300
    - ``Mixer.imix()``: i-Mix, https://arxiv.org/abs/2010.08887
    - ``Mixer.unmix()``: Un-Mix, https://arxiv.org/abs/2003.05438
    - ``Mixer.mixmask()``: MixMask, https://arxiv.org/abs/2210.11456

    Args:
        mixing: "mixup", weighted sums; "cutmix", a box of the second image in the first; "mask",
            blocks of the first image in the second; "mixup-or-cutmix", one of the two for each
            batch, with probability 1/2. See :func:`mixup`, :func:`cutmix`, :func:`mask_mix` and
            :func:`mixup_or_cutmix`.
        pairing: "halves", M = N // 2 pairs of image m and image m + M; "permuted", N pairs of each
            image and one of a random permutation; "reversed", N pairs of image n and image
            N - 1 - n. A permutation, or the middle of an odd batch, can pair an image with itself.
        alpha: The weights follow Beta(alpha, alpha); the default 1 is uniform. ``math.inf`` is the
            weight 1/2, without drawing.
        shared_weight: Whether the batch has one weight, and one box or mask, instead of one for
            each pair.
        folded: Whether the first image gets the larger weight, max(lam, 1 - lam).

    Raises:
        ValueError: If there is no such mixing or pairing, or if ``alpha`` is not positive.

    Examples:
        >>> import torch
        >>> from mixco_lightly import Mixer
        >>> mixer = Mixer("cutmix", pairing="reversed", shared_weight=True)
        >>> images, first, second, lam = mixer(torch.rand(4, 3, 32, 32))
        >>> images.shape, second.tolist(), len(lam.unique())
        (torch.Size([4, 3, 32, 32]), [3, 2, 1, 0], 1)
    """

    mixing: MixingName = "mixup"
    pairing: PairingName = "halves"
    alpha: float = 1.0
    shared_weight: bool = False
    folded: bool = False

    def __post_init__(self) -> None:
        for name, names in [("mixing", get_args(MixingName)), ("pairing", get_args(PairingName))]:
            if getattr(self, name) not in names:
                raise ValueError(
                    f"{name} must be one of {', '.join(names)}, got {getattr(self, name)!r}."
                )
        if self.alpha != math.inf:
            check_alpha(self.alpha)

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Mixture:
        """Mixes a batch.

        Args:
            images: Batch of images, shape (N, C, H, W), floating point, on any device.
            generator: Random generator on the images' device. Default: torch's global one.

        Returns:
            Mixtures of the images' dtype. Their ``lam`` is float32, or float64 for float64 images.

        Raises:
            TypeError: If ``images`` is not a tensor.
            ValueError: If there are fewer than two images, or if they are not a floating point
                tensor of four dimensions.
        """
        check_images(images)
        count, device = len(images), images.device
        if self.pairing == "halves":
            first, second = pair_halves(count, device)
        elif self.pairing == "permuted":
            first, second = pair_permuted(count, device, generator)
        else:
            first, second = pair_reversed(count, device)
        lam = beta_weights(
            1 if self.shared_weight else len(first),
            self.alpha,
            self.folded,
            weight_dtype(images),
            device,
            generator,
        )
        if self.mixing == "mixup":
            return mixup(images, first, second, lam)
        mix = {"cutmix": cutmix, "mask": mask_mix, "mixup-or-cutmix": mixup_or_cutmix}[self.mixing]
        return mix(images, first, second, lam, generator)

    @classmethod
    def mixco(cls, mixing: MixingName = "mixup", alpha: float = 1.0) -> Mixer:
        """Creates MixCo's mixer: halves of the batch, a weight for each pair.

        Args:
            mixing: The authors' is mixup.
            alpha: As in :class:`Mixer`.
        """
        return cls(mixing, "halves", alpha)

    @classmethod
    def imix(cls, mixing: MixingName = "mixup", alpha: float = 1.0) -> Mixer:
        """Creates i-Mix's mixer: permuted pairs, the larger weight on the first image.

        Mixup has a weight for each pair. The other mixings share one, as the authors' i-CutMix
        does.

        Args:
            mixing: The authors' are mixup, and cutmix for ImageNet.
            alpha: As in :class:`Mixer`.
        """
        return cls(mixing, "permuted", alpha, shared_weight=mixing != "mixup", folded=True)

    @classmethod
    def unmix(cls, mixing: MixingName = "mixup-or-cutmix", alpha: float = 1.0) -> Mixer:
        """Creates Un-Mix's mixer: the reversed batch, one weight for each batch.

        Args:
            mixing: The authors' is mixup-or-cutmix.
            alpha: As in :class:`Mixer`.
        """
        return cls(mixing, "reversed", alpha, shared_weight=True)

    @classmethod
    def mixmask(cls, alpha: float = math.inf) -> Mixer:
        """Creates MixMask's mixer: the reversed batch, one mask of blocks for each batch.

        Args:
            alpha: As in :class:`Mixer`. The default ``math.inf`` gives the mask half of the cells,
                as the authors' ``mask_lam=0.5`` does.
        """
        return cls("mask", "reversed", alpha, shared_weight=True)
