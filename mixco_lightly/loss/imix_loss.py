"""The i-Mix loss: a contrastive loss of mixtures alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixco_lightly.data.mixture import Mixture
from mixco_lightly.loss.argument_checks import check_mixtures_and_keys, check_temperature
from mixco_lightly.loss.contrastive import mixed_cross_entropy, unit_rows
from mixco_lightly.loss.queue_loss import QueueLoss, pairs_on


class IMixLoss(QueueLoss):
    """Computes the soft cross-entropy of mixtures with the keys of their images: i-Mix [0].

    The projection of a mixture ``lam * a + (1 - lam) * b`` should match the key of a with weight
    lam and the key of b with weight 1 - lam, among all keys of the batch and of the queue. This is
    the second term of :class:`MixCoLoss`; there is no term for plain images. The minimum is not 0
    but the entropy of (lam, 1 - lam).

    With a queue, the keys come from a momentum encoder, as in MoCo [1], and get no gradient.
    Without one, the loss is i-Mix's N-pair: one encoder computes the mixtures and the keys, and
    both get a gradient.

    - [0]: i-Mix, ICLR 2021, https://arxiv.org/abs/2010.08887
    - [1]: MoCo, 2020, https://arxiv.org/abs/1911.05722

    The loss follows the authors' code (kibok90/imix at commit d40fabe): its ``npair`` without a
    queue, its ``mocon`` with one. In ``mocon`` the keys of the batch are candidates beside the
    queue, unlike in MoCo. The differences are:

    - The code adds the weighted cross-entropies of a mixture's two keys; here they are one soft
      cross-entropy, because they have the same candidates. The values are equal.
    - The code's symmetric option is the sum of two calls, the second with the views exchanged.
    - The code gathers keys in ``mocon`` whenever there are several processes, and in ``npair``
      never; here ``gather_distributed`` decides for both.
    - Any batch size fits any queue.

    The code draws weights of at least 1/2 and pairs each image with one of a random permutation.
    The loss accepts any mixtures.

    Args:
        temperature: Divides the similarities. The default 0.2 is the authors'.
        memory_bank_size: 0 for N-pair, or (n, dim) for a queue of n keys as in MoCo.
        gather_distributed: If True, the keys of all processes are candidates. All processes must
            have batches of one size. The average over processes then equals the loss of the whole
            batch on one process. The loss warns if there is no process group. If False, each of
            several processes keeps a queue of its own keys, and the loss warns that
            DistributedDataParallel may overwrite them.

    A second derivative raises an error. torch.compile makes one graph of the loss, except for the
    enqueue and the gathering from several processes.

    A loss with a queue need not be moved to a GPU: the queue follows the projections.

    Raises:
        ValueError: If the temperature is not positive and finite, or if memory_bank_size is neither
            0 nor a pair of positive integers.

    Examples:
        >>> import torch
        >>> from mixco_lightly import IMixLoss, mix_pairs
        >>> images = torch.rand(8, 3, 4, 4)
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 16))
        >>> criterion = IMixLoss()
        >>> mixture = mix_pairs(images)
        >>> criterion(encoder(mixture.images), encoder(images), mixture).backward()
    """

    def __init__(
        self,
        temperature: float = 0.2,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        check_temperature("temperature", temperature)
        super().__init__(memory_bank_size, gather_distributed)
        self.temperature = temperature

    def forward(self, mixed: Tensor, keys: Tensor, mixture: Mixture) -> Tensor:
        """Computes the loss.

        A loss with a queue reads it first and then adds the keys to it. It adds them only in
        training mode and if ``mixed`` requires a gradient, and only once if activation
        checkpointing repeats the forward.

        The precision is that of :meth:`MixCoLoss.forward_components`: float32 at least, also under
        autocast, except for products with the queue under autocast to bfloat16. The queue and the
        mixture's indices and weights move to the device of ``mixed``.

        Args:
            mixed: Projections of ``mixture.images``, not normalised, shape (M, dim).
            keys: Projections of the other view of the batch, shape (N, dim). With a queue they get
                no gradient.
            mixture: Mixtures of the batch, as from :func:`mixco_lightly.mix_pairs` or
                :class:`mixco_lightly.MixCoCollate`.

        Returns:
            Mean over the mixtures, scalar, float32 (float64 for float64 projections).

        Raises:
            TypeError: If the projections are not tensors or the mixture is not a
                :class:`mixco_lightly.Mixture`.
            ValueError: If shapes or dtypes do not fit, if the batch has one image and there is no
                queue, if the mixture is empty, if its indices or weights are out of range (checked
                on a CPU only), or, with gather_distributed, if the processes' batches differ in
                size.
            FloatingPointError: If a key is NaN or infinite; see :meth:`KeyQueue.enqueue`. Under
                autocast to float16 the loss raises only after more than 20 such steps in a row,
                because the GradScaler skips them.
        """
        check_mixtures_and_keys(mixed, keys, mixture, self._queue_dim)
        step = self._start(mixed)
        # Autocast would run all products in half precision, also those of the targets.
        with torch.autocast(device_type=mixed.device.type, enabled=False):
            z = unit_rows(mixed)
            if self.queue is not None:
                keys = keys.detach()
            (all_keys,), offset = self._gather(unit_rows(keys))
            first, second, lam = pairs_on(z.device, mixture, offset)
            queue_lse: Tensor | None = None
            if self.queue is not None:
                queries = z / self.temperature
                queue_lse = self._queue_logsumexp(queries, all_keys, self.temperature, step)
            loss = mixed_cross_entropy(z, all_keys, first, second, lam, self.temperature, queue_lse)
        self._finish(all_keys, step)
        return loss
