"""The base of MixCoLoss and UnMixLoss, which differ in the term of the mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixco_lightly.data.mixture import Mixture
from mixco_lightly.loss.argument_checks import check_mix_weight, check_temperature, check_views
from mixco_lightly.loss.contrastive import key_cross_entropy, nt_xent, unit_rows
from mixco_lightly.loss.queue_loss import QueueLoss, pairs_on


class MixCoLossComponents(NamedTuple):
    """Holds the loss of MixCo or Un-Mix and its two terms.

    Attributes:
        total: ``contrast + mix_weight * mix``.
        contrast: Contrastive loss of the plain images.
        mix: Unweighted contrastive loss of the mixtures, 0 without mixtures.
    """

    total: Tensor
    contrast: Tensor
    mix: Tensor


class PlainAndMixedLoss(QueueLoss):
    """Base of the losses with a term for plain images and a term for mixtures.

    The first term is the loss of MoCo (with a queue) or of SimCLR (without). A subclass computes
    the second in ``_mixture_term``.

    Args:
        temperature: Divides the similarities of plain images.
        mix_temperature: Divides the similarities of mixtures.
        mix_weight: Weight of the mixtures' term. With 0 the loss ignores mixtures.
        memory_bank_size: 0 for SimCLR, or (n, dim) for a queue of n keys as in MoCo.
        gather_distributed: If True, the keys of all processes are candidates.

    Raises:
        ValueError: If a temperature is not positive and finite, if mix_weight is negative or not
            finite, or if memory_bank_size is neither 0 nor a pair of positive integers.
    """

    def __init__(
        self,
        temperature: float,
        mix_temperature: float,
        mix_weight: float,
        memory_bank_size: int | Sequence[int],
        gather_distributed: bool,
    ) -> None:
        check_temperature("temperature", temperature)
        check_temperature("mix_temperature", mix_temperature)
        check_mix_weight(mix_weight)
        super().__init__(memory_bank_size, gather_distributed)
        self.temperature = temperature
        self.mix_temperature = mix_temperature
        self.mix_weight = mix_weight

    def _mixture_term(
        self,
        z: Tensor,
        keys: Tensor,
        first: Tensor,
        second: Tensor,
        lam: Tensor,
        queue_lse: Tensor | None,
    ) -> Tensor:
        """Computes the loss of mixtures.

        Args:
            z: Unit rows of the mixtures, shape (M, dim).
            keys: Unit rows of the other view's images, of all processes if the loss gathers.
            first: Row in ``keys`` of each mixture's first image, shape (M,).
            second: Row in ``keys`` of each mixture's second image, shape (M,).
            lam: Weight of each mixture's first image, shape (M,).
            queue_lse: Log-sum-exp of each mixture's similarities with the queue, divided by
                ``mix_temperature``, shape (M,), or None if there is no queue.

        Returns:
            Mean over the mixtures, scalar.
        """
        raise NotImplementedError

    def forward(
        self,
        out0: Tensor,
        out1: Tensor,
        mixed0: Tensor | None = None,
        mixture0: Mixture | None = None,
        mixed1: Tensor | None = None,
        mixture1: Mixture | None = None,
    ) -> Tensor:
        """Computes the loss; see :meth:`forward_components` for the arguments.

        Returns:
            The total loss, scalar, float32 (float64 for float64 projections).
        """
        return self.forward_components(out0, out1, mixed0, mixture0, mixed1, mixture1).total

    def forward_components(
        self,
        out0: Tensor,
        out1: Tensor,
        mixed0: Tensor | None = None,
        mixture0: Mixture | None = None,
        mixed1: Tensor | None = None,
        mixture1: Mixture | None = None,
    ) -> MixCoLossComponents:
        """Computes the loss and its two terms.

        The loss reads the queue first and then adds the keys ``out1`` to it. It adds them only in
        training mode and if ``out0`` requires a gradient, and only once if activation
        checkpointing repeats the forward.

        The loss is computed in float32 even under autocast, and in float64 for float64
        projections. One exception: under autocast to bfloat16, float32 rows are multiplied with
        the queue in bfloat16 if the device is faster at that. All other float32 products have full
        precision, whatever ``torch.set_float32_matmul_precision`` is set to.

        The queue and the mixtures' indices and weights move to the device of ``out0``.

        Args:
            out0: Projections of the first view (MoCo: the queries), not normalised, shape
                (N, dim).
            out1: Projections of the second view (MoCo: the keys, without gradient), shape
                (N, dim).
            mixed0: Projections of ``mixture0.images``, contrasted with ``out1``, shape (M, dim).
            mixture0: Mixtures of the first view's images, as from :func:`mix_pairs` or
                :class:`MixCoCollate`.
            mixed1: Projections of ``mixture1.images``, contrasted with ``out0``, shape (M, dim).
                Only for a loss without a queue. The mixtures' term is then the mean over both.
            mixture1: Mixtures of the second view's images.

        Returns:
            The total and its two terms, scalars.

        Raises:
            TypeError: If the projections are not tensors or a mixture is not a :class:`Mixture`.
            ValueError: If shapes or dtypes do not fit, if the batch has one image and there is no
                queue, if a mixture is empty, if its indices or weights are out of range (checked
                on a CPU only), if mixed projections come without their mixture or the other way
                round, if ``mixed1`` is given with a queue, or, with gather_distributed, if the
                processes' batches differ in size.
            FloatingPointError: If a key is NaN or infinite; see :meth:`KeyQueue.enqueue`. Under
                autocast to float16 the loss raises only after more than 20 such steps in a row,
                because the GradScaler skips them.
        """
        check_views(out0, out1, mixed0, mixture0, mixed1, mixture1, self._queue_dim)
        step = self._start(out0)
        # Autocast would run all products in half precision, also those of the positives.
        with torch.autocast(device_type=out0.device.type, enabled=False):
            z0, z1 = unit_rows(out0), unit_rows(out1)
            if self.queue is None:
                (all_z0, all_z1), offset = self._gather(z0, z1)
            else:
                all_z0 = z0
                (all_z1,), offset = self._gather(z1)

            mixed: list[tuple[Tensor, Mixture, Tensor]] = []  # unit rows, mixture, candidates
            if self.mix_weight > 0:
                if mixed0 is not None and mixture0 is not None:
                    mixed.append((unit_rows(mixed0), mixture0, all_z1))
                if mixed1 is not None and mixture1 is not None:
                    mixed.append((unit_rows(mixed1), mixture1, all_z0))

            mixed_queue_lse: Tensor | None = None
            if self.queue is None:
                contrast = nt_xent(z0, z1, all_z0, all_z1, offset, self.temperature)
            else:
                # One pass over the queue serves the plain and the mixed queries.
                queries = torch.cat(
                    [z0 / self.temperature, *(z / self.mix_temperature for z, _, _ in mixed)]
                )
                min_temperature = min(self.temperature, self.mix_temperature)
                queue_lse = self._queue_logsumexp(queries, all_z1, min_temperature, step)
                contrast = key_cross_entropy(z0, z1, self.temperature, queue_lse[: len(z0)])
                mixed_queue_lse = queue_lse[len(z0) :]

            mix = z0.new_zeros(())
            for z, mixture, keys in mixed:
                first, second, lam = pairs_on(z.device, mixture, offset)
                term = self._mixture_term(z, keys, first, second, lam, mixed_queue_lse)
                mix = mix + term / len(mixed)
            total = contrast + self.mix_weight * mix

        self._finish(all_z1, step)
        return MixCoLossComponents(total, contrast, mix)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles :meth:`forward_components`, and with it :meth:`forward`, in place.

        ``nn.Module.compile`` would compile only ``__call__``. A copy of the module is not
        compiled, as with ``nn.Module.compile``.

        Args:
            args: Passed to :func:`torch.compile`.
            kwargs: Passed to :func:`torch.compile`.
        """
        compiled = torch.compile(self.forward_components, *args, **kwargs)
        self.forward_components = compiled  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without the compiled method, which a copy must not share."""
        state: dict[str, Any] = super().__getstate__()
        state.pop("forward_components", None)
        return state
