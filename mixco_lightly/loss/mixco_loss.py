"""The MixCo loss: a contrastive loss of plain images plus one of their mixtures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mixco_lightly.loss.contrastive import mixed_cross_entropy
from mixco_lightly.loss.plain_and_mixed_loss import (
    MixCoLossComponents as MixCoLossComponents,
    PlainAndMixedLoss,
)


class MixCoLoss(PlainAndMixedLoss):
    """Computes a contrastive loss with MixCo's second term for mixtures of images [0].

    The first term is the loss of MoCo [1] (with a queue) or of SimCLR [2] (without). It equals
    Lightly's ``NTXentLoss``. The second term is a soft cross-entropy: the projection of a mixture
    ``lam * a + (1 - lam) * b`` should match the key of a with weight lam and the key of b with
    weight 1 - lam, among all keys of the other view and of the queue.

    - [0]: MixCo, 2020, https://arxiv.org/abs/2010.06300, Eqs. 1, 3 and 4
    - [1]: MoCo, 2020, https://arxiv.org/abs/1911.05722
    - [2]: SimCLR, 2020, https://arxiv.org/abs/2002.05709

    Where paper and code differ, the loss follows the authors' code
    (Lee-Gihun/MixCo-Mixup-Contrast at commit 8374aac): it averages over images and over mixtures
    instead of summing, and a mixture's candidates are all keys of the batch, not only the pair's.

    Args:
        temperature: Divides the similarities of plain images. MoCo v2 and the authors' MoCo code
            use the default 0.2. The authors' SimCLR code uses 0.5.
        mix_temperature: Divides the similarities of mixtures. The default 0.1 was best or level
            with the best for a small ResNet on CIFAR-10, where 0.05 lost 7 points under the usual
            augmentations (docs/results.md). The authors use 0.05 for MoCo on TinyImageNet, 1 for
            MoCo on ImageNet and 0.5 for SimCLR.
        mix_weight: Weight of the mixtures' term, the paper's beta. The default 1 is the authors'.
            With 0 the loss ignores mixtures and equals the plain baseline.
        memory_bank_size: 0 for SimCLR, or (n, dim) for a queue of n keys as in MoCo.
        gather_distributed: If True, the keys of all processes are candidates, for SimCLR's views,
            for mixtures and in the queue. All processes must have batches of one size. The average
            over processes then equals the loss of the whole batch on one process. The loss warns
            if there is no process group. If False, each of several processes keeps a queue of its
            own keys, and the loss warns that DistributedDataParallel may overwrite them.

    A second derivative raises an error. torch.compile makes one graph of the loss, except for the
    enqueue and the gathering from several processes.

    A loss with a queue need not be moved to a GPU: the queue follows the projections.

    Raises:
        ValueError: If a temperature is not positive and finite, if mix_weight is negative or not
            finite, or if memory_bank_size is neither 0 nor a pair of positive integers.

    Examples:
        >>> import torch
        >>> from mixco_lightly import MixCoLoss, mix_pairs
        >>> images = torch.rand(8, 3, 4, 4)
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 16))
        >>> criterion = MixCoLoss(memory_bank_size=(64, 16))
        >>> mixture = mix_pairs(images)
        >>> query, key, mixed = encoder(images), encoder(images).detach(), encoder(mixture.images)
        >>> criterion(query, key, mixed, mixture).backward()
    """

    def __init__(
        self,
        temperature: float = 0.2,
        mix_temperature: float = 0.1,
        mix_weight: float = 1.0,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(
            temperature, mix_temperature, mix_weight, memory_bank_size, gather_distributed
        )

    def _mixture_term(
        self,
        z: Tensor,
        keys: Tensor,
        first: Tensor,
        second: Tensor,
        lam: Tensor,
        queue_lse: Tensor | None,
    ) -> Tensor:
        return mixed_cross_entropy(z, keys, first, second, lam, self.mix_temperature, queue_lse)
