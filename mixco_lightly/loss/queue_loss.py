"""The base of the losses of mixtures: the queue, the gathering and the precision."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from lightly.utils import dist
from torch import Tensor, nn

import mixco_lightly.machine as machine
from mixco_lightly.data.mixture import Mixture
from mixco_lightly.loss.blockwise import queue_logsumexp
from mixco_lightly.loss.gather import check_equal_sizes, gather_rows, warn_without_process_group
from mixco_lightly.loss.key_queue import KeyQueue


class Step(NamedTuple):
    """Holds what a loss must know about its call before it switches autocast off.

    Attributes:
        autocast_dtype: Autocast's dtype on the projections' device, or None if autocast is off.
        extends_queue: Whether the loss adds the keys to its queue: in training, with a gradient.
        is_repeated: Whether activation checkpointing repeats the forward. The loss must then read
            the queue as it was, and must not extend it again.
    """

    autocast_dtype: torch.dtype | None
    extends_queue: bool
    is_repeated: bool


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


def pairs_on(device: torch.device, mixture: Mixture, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns first, second and lam of a mixture on a device.

    Args:
        device: Where the projections are.
        mixture: Mixtures of this process's images.
        offset: Row of the gathered keys at which this process's start.

    Returns:
        Rows of the gathered keys for first and second, shape (M,) each, and lam.
    """
    first, second, lam = (
        x.to(device, non_blocking=True) for x in (mixture.first, mixture.second, mixture.lam)
    )
    return first + offset, second + offset, lam


class QueueLoss(nn.Module):
    """Base of the losses that contrast projections with the keys of a batch and of a queue.

    A forward calls ``_start``, switches autocast off, calls ``_gather`` and, with a queue,
    ``_queue_logsumexp``, and ends with ``_finish``.

    Args:
        memory_bank_size: 0 for a loss without a queue, or (n, dim) for a queue of n keys.
        gather_distributed: If True, the keys of all processes are candidates.

    Raises:
        ValueError: If memory_bank_size is neither 0 nor a pair of positive integers.
    """

    queue: KeyQueue | None

    def __init__(self, memory_bank_size: int | Sequence[int], gather_distributed: bool) -> None:
        super().__init__()
        self.gather_distributed = gather_distributed
        self._has_warned = False
        self.queue = None
        if isinstance(memory_bank_size, int):
            if memory_bank_size != 0:
                raise ValueError(
                    "memory_bank_size must be 0 (no queue, SimCLR) or a pair (n, dim), "
                    f"got {memory_bank_size}."
                )
        else:
            self.queue = KeyQueue(memory_bank_size)  # the loss gathers the keys

    @property
    def _queue_dim(self) -> int | None:
        return None if self.queue is None else self.queue.keys.shape[1]

    def _start(self, queries: Tensor) -> Step:
        """Moves the queue to the queries' device, warns of wrong set-ups, and describes the step.

        Args:
            queries: Projections that require a gradient in training, not normalised.

        Returns:
            What the rest of the step needs.
        """
        if self.gather_distributed:
            warn_without_process_group()
        if self.queue is not None:
            self._warn_of_separate_queues()
            self.queue.follow(queries.device)
        extends_queue = self.queue is not None and self.training and queries.requires_grad
        return Step(
            autocast_dtype=_autocast_dtype(queries.device.type),
            extends_queue=extends_queue,
            is_repeated=extends_queue and _is_in_backward(),
        )

    def _gather(self, *rows: Tensor) -> tuple[list[Tensor], int]:
        """Gathers rows from all processes if the loss is meant to.

        Args:
            rows: Tensors of this process with equally many rows.

        Returns:
            Each tensor with the rows of all processes, and the row at which this process's start.
        """
        if not self.gather_distributed or dist.world_size() == 1:
            return list(rows), 0
        check_equal_sizes(len(rows[0]))
        return [gather_rows(x) for x in rows], dist.rank() * len(rows[0])

    def _queue_logsumexp(
        self, queries: Tensor, keys: Tensor, min_temperature: float, step: Step
    ) -> Tensor:
        """Computes the log-sum-exp of the queries' similarities with the queue.

        Args:
            queries: Unit rows divided by their temperatures, shape (n, c).
            keys: The keys that this step adds to the queue.
            min_temperature: The smallest of the temperatures.
            step: What ``_start`` returned.

        Returns:
            Log-sum-exps, shape (n,).
        """
        assert self.queue is not None
        bfloat16 = (
            step.autocast_dtype == torch.bfloat16
            and queries.dtype == torch.float32
            and _has_fast_bfloat16(queries.device)
        )
        queue = self.queue.keys_before(keys) if step.is_repeated else self.queue.keys
        # Unit rows have similarities up to 1. The thousandth more covers rounding.
        return queue_logsumexp(queries, queue, 1.001 / min_temperature, bfloat16)

    def _finish(self, keys: Tensor, step: Step) -> None:
        """Adds the keys to the queue if the step is one of training.

        Args:
            keys: Unit rows of all processes.
            step: What ``_start`` returned.
        """
        if self.queue is not None and step.extends_queue and not step.is_repeated:
            self.queue.enqueue(keys, float16=step.autocast_dtype == torch.float16)

    def _warn_of_separate_queues(self) -> None:
        if self._has_warned or self.gather_distributed or not self.training:
            return
        if dist.world_size() > 1:
            self._has_warned = True
            warnings.warn(
                f"{type(self).__name__} has a queue and gather_distributed=False, but there are "
                f"{dist.world_size()} processes: each keeps a queue of its own keys. "
                "DistributedDataParallel overwrites them with rank 0's keys if the loss is part of "
                "the wrapped module (mixco_lightly.models.MoCo prevents that). Pass "
                "gather_distributed=True, or keep the loss out of the wrapped module.",
                stacklevel=5,
            )
