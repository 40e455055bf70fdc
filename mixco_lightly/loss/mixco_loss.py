"""The MixCo loss: a contrastive loss of plain images plus one of their mixtures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightly.utils import dist
from torch import Tensor, nn

import mixco_lightly.machine as machine
from mixco_lightly.data.mixture import Mixture
from mixco_lightly.loss.blockwise import queue_logsumexp
from mixco_lightly.loss.contrastive import (
    key_cross_entropy,
    mixed_cross_entropy,
    nt_xent,
    unit_rows,
)
from mixco_lightly.loss.gather import check_equal_sizes, gather_rows, warn_without_process_group
from mixco_lightly.loss.key_queue import KeyQueue
from mixco_lightly.loss.mixture_checks import check_inputs


def _is_in_backward() -> bool:
    """Returns whether a backward pass is running, in which checkpointing repeats the forward."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    """Returns autocast's dtype on a device, or None if autocast is off."""
    if not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


# torch.compile cannot trace this call, and its result never changes.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_fast_bfloat16(device: torch.device) -> bool:
    return machine.has_fast_bfloat16(device)


class MixCoLossComponents(NamedTuple):
    """Holds the MixCo loss and its two terms.

    Attributes:
        total: ``contrast + mix_weight * mix``.
        contrast: Contrastive loss of the plain images.
        mix: Unweighted contrastive loss of the mixtures, 0 without mixtures.
    """

    total: Tensor
    contrast: Tensor
    mix: Tensor


class MixCoLoss(nn.Module):
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
        super().__init__()
        for name, value in [("temperature", temperature), ("mix_temperature", mix_temperature)]:
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ValueError(f"{name} must be a positive finite number, got {value!r}.")
        if not (isinstance(mix_weight, (int, float)) and 0 <= mix_weight < math.inf):
            raise ValueError(
                f"mix_weight must be a finite number of at least 0, got {mix_weight!r}."
            )
        self.temperature = temperature
        self.mix_temperature = mix_temperature
        self.mix_weight = mix_weight
        self.gather_distributed = gather_distributed
        self._has_warned = False
        self.queue: KeyQueue | None = None
        if isinstance(memory_bank_size, int):
            if memory_bank_size != 0:
                raise ValueError(
                    "memory_bank_size must be 0 (no queue, SimCLR) or a pair (n, dim), "
                    f"got {memory_bank_size}."
                )
        else:
            self.queue = KeyQueue(memory_bank_size)  # the loss gathers the keys

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
        queue_dim = None if self.queue is None else self.queue.keys.shape[1]
        check_inputs(out0, out1, mixed0, mixture0, mixed1, mixture1, queue_dim)
        if self.gather_distributed:
            warn_without_process_group()
        device, device_type = out0.device, out0.device.type
        if self.queue is not None:
            self._warn_of_separate_queues()
            self.queue.follow(device)
        autocast_dtype = _autocast_dtype(device_type)
        # Autocast would run all products in half precision, also those of the positives.
        with torch.autocast(device_type=device_type, enabled=False):
            z0, z1 = unit_rows(out0), unit_rows(out1)
            all_z0, all_z1, offset = z0, z1, 0
            if self.gather_distributed and dist.world_size() > 1:
                check_equal_sizes(len(z0))
                all_z0 = gather_rows(z0) if self.queue is None else z0
                all_z1 = gather_rows(z1)
                offset = dist.rank() * len(z0)

            mixed: list[tuple[Tensor, Mixture, Tensor]] = []  # unit rows, mixture, candidates
            if self.mix_weight > 0:
                if mixed0 is not None and mixture0 is not None:
                    mixed.append((unit_rows(mixed0), mixture0, all_z1))
                if mixed1 is not None and mixture1 is not None:
                    mixed.append((unit_rows(mixed1), mixture1, all_z0))

            # A repeated forward must read the queue as it was, and must not extend it again.
            extends_queue = self.queue is not None and self.training and out0.requires_grad
            is_repeated = extends_queue and _is_in_backward()
            mixed_queue_lse: Tensor | None = None
            if self.queue is None:
                contrast = nt_xent(z0, z1, all_z0, all_z1, offset, self.temperature)
            else:
                # One pass over the queue serves the plain and the mixed queries.
                queries = torch.cat(
                    [z0 / self.temperature, *(z / self.mix_temperature for z, _, _ in mixed)]
                )
                bfloat16 = (
                    autocast_dtype == torch.bfloat16
                    and queries.dtype == torch.float32
                    and _has_fast_bfloat16(device)
                )
                # Unit rows have similarities up to 1. The thousandth more covers rounding.
                max_logit = 1.001 / min(self.temperature, self.mix_temperature)
                keys = self.queue.keys_before(all_z1) if is_repeated else self.queue.keys
                queue_lse = queue_logsumexp(queries, keys, max_logit, bfloat16)
                contrast = key_cross_entropy(z0, z1, self.temperature, queue_lse[: len(z0)])
                mixed_queue_lse = queue_lse[len(z0) :]

            mix = z0.new_zeros(())
            for z, mixture, candidates in mixed:
                first, second, lam = (
                    x.to(device, non_blocking=True)
                    for x in (mixture.first, mixture.second, mixture.lam)
                )
                mix = mix + mixed_cross_entropy(
                    z,
                    candidates,
                    first + offset,
                    second + offset,
                    lam,
                    self.mix_temperature,
                    mixed_queue_lse,
                ) / len(mixed)
            total = contrast + self.mix_weight * mix

        if self.queue is not None and extends_queue and not is_repeated:
            self.queue.enqueue(all_z1, float16=autocast_dtype == torch.float16)
        return MixCoLossComponents(total, contrast, mix)

    def _warn_of_separate_queues(self) -> None:
        if self._has_warned or self.gather_distributed or not self.training:
            return
        if dist.world_size() > 1:
            self._has_warned = True
            warnings.warn(
                "MixCoLoss has a queue and gather_distributed=False, but there are "
                f"{dist.world_size()} processes: each keeps a queue of its own keys. "
                "DistributedDataParallel overwrites them with rank 0's keys if the loss is part of "
                "the wrapped module (mixco_lightly.models.MoCo prevents that). Pass "
                "gather_distributed=True, or keep the loss out of the wrapped module.",
                stacklevel=4,
            )

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
