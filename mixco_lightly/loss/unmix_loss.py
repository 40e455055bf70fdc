"""The Un-Mix loss: a contrastive loss of plain images plus one of each mixture's two sources."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mixco_lightly.loss.contrastive import mixed_nt_xent, weighted_key_cross_entropy
from mixco_lightly.loss.plain_and_mixed_loss import PlainAndMixedLoss


class UnMixLoss(PlainAndMixedLoss):
    """Computes a contrastive loss with Un-Mix's second term for mixtures of images [0].

    The first term is that of :class:`MixCoLoss`: the loss of MoCo [1] (with a queue) or of
    SimCLR [2] (without). The second term is a weighted InfoNCE: the projection of a mixture
    ``lam * a + (1 - lam) * b`` should match the key of a, with weight lam, and the key of b, with
    weight 1 - lam.

    With a queue, each of the two keys stands alone against the queue. The other key and the other
    images of the batch are no candidates, so the two keys do not compete as they do in MixCo, and
    the term can become 0. MixMask [3] has the same loss for its mixtures.

    Without a queue, each of the two terms is SimCLR's loss of the mixtures and the keys of their
    images: ``lam * loss(mixed, keys[first]) + (1 - lam) * loss(mixed, keys[second])``. All keys
    of the other view and all mixtures are candidates, and keys are anchors too. A mixture's two
    keys then compete, because each is a candidate in the other's softmax.

    - [0]: Un-Mix, AAAI 2022, https://arxiv.org/abs/2003.05438
    - [1]: MoCo, 2020, https://arxiv.org/abs/1911.05722
    - [2]: SimCLR, 2020, https://arxiv.org/abs/2002.05709
    - [3]: MixMask, BMVC 2022, https://arxiv.org/abs/2210.11456

    With a queue, the loss follows the authors' code (szq0214/Un-Mix at commit 0911f77 and
    kirill-vish/MixMask at commit 392a0e7), with these differences:

    - The code reverses the order of the mixtures to contrast each with its second image; here
      ``mixture.second`` names that image, so any pairing works. The values are equal.
    - The code has one lam for the whole batch; here each mixture has its own.
    - The symmetric loss of its CIFAR script is the sum of two calls, the second with the views
      exchanged and the mixtures of view 0 contrasted with the keys of view 0. The script adds both
      views' keys to the queue after the second.
    - The README's pseudo-code passes the mixtures as keys. In the code they are queries.
    - Any batch size fits any queue.

    The authors published no code for SimCLR. Without a queue, the loss follows the pseudo-code of
    their README with SimCLR as its model. Mixtures that do not cover the batch, as those of
    MixCo's pairs, are an extension: all keys of the batch stay candidates.

    Args:
        temperature: Divides all similarities. The authors use the default 0.2 on ImageNet and 0.1
            on CIFAR.
        mix_weight: Weight of the mixtures' term. The default 1 is the authors'. With 0 the loss
            ignores mixtures and equals the plain baseline.
        memory_bank_size: 0 for SimCLR, or (n, dim) for a queue of n keys as in MoCo.
        gather_distributed: If True, the keys of all processes are candidates, and without a queue
            their mixtures too. All processes must have batches of one size. The average over
            processes then equals the loss of the whole batch on one process. The loss warns if
            there is no process group. If False, each of several processes keeps a queue of its
            own keys, and the loss warns that DistributedDataParallel may overwrite them.

    A second derivative raises an error. torch.compile makes one graph of the loss, except for the
    enqueue and the gathering from several processes.

    A loss with a queue need not be moved to a GPU: the queue follows the projections.

    Raises:
        ValueError: If the temperature is not positive and finite, if mix_weight is negative or not
            finite, or if memory_bank_size is neither 0 nor a pair of positive integers.

    Examples:
        >>> import torch
        >>> from mixco_lightly import UnMixLoss, mix_pairs
        >>> images = torch.rand(8, 3, 4, 4)
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 16))
        >>> criterion = UnMixLoss(memory_bank_size=(64, 16))
        >>> mixture = mix_pairs(images)
        >>> query, key, mixed = encoder(images), encoder(images).detach(), encoder(mixture.images)
        >>> criterion(query, key, mixed, mixture).backward()
    """

    def __init__(
        self,
        temperature: float = 0.2,
        mix_weight: float = 1.0,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(temperature, temperature, mix_weight, memory_bank_size, gather_distributed)

    def _mixture_term(
        self,
        z: Tensor,
        keys: Tensor,
        first: Tensor,
        second: Tensor,
        lam: Tensor,
        queue_lse: Tensor | None,
    ) -> Tensor:
        if queue_lse is not None:
            return weighted_key_cross_entropy(
                z, keys, first, second, lam, self.mix_temperature, queue_lse
            )
        (all_z,), offset = self._gather(z)
        return mixed_nt_xent(z, keys, all_z, first, second, lam, offset, self.mix_temperature)
