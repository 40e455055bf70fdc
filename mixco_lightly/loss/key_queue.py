"""The queue of earlier keys that serve as MoCo's negatives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightly.utils import dist
from torch import Tensor, nn

from mixco_lightly.loss.gather import check_equal_sizes, gather_rows

# Consecutive steps. The GradScaler of float16 training skips them while it lowers its scale.
TOLERATED_STEPS_IN_FLOAT16 = 20


class KeyQueue(nn.Module):
    """Stores the newest key projections in a ring buffer.

    Unlike Lightly's memory bank the queue is part of ``state_dict``, so a resumed run continues
    with its keys. It accepts any batch size. Like Lightly's, it moves to the device of the keys by
    itself. A checkpoint without a queue loads with a warning. ``module.half()`` leaves the keys in
    float32.

    - MoCo, 2020, https://arxiv.org/abs/1911.05722, section 3.2

    Attributes:
        keys: The keys as unit rows, float32 of shape (n, dim). They start as random unit vectors,
            as in MoCo and Lightly.
        position: Row of the oldest key, which the next key overwrites, int64 scalar.

    Args:
        size: (n, dim), the number of keys and their dimension.
        gather_distributed: If True, every process enqueues the keys of all processes, in the
            order of the ranks, so the queues stay equal. All processes must then enqueue the same
            number of keys.

    Raises:
        ValueError: If size is not a pair of positive integers.

    Examples:
        >>> import torch
        >>> from mixco_lightly import KeyQueue
        >>> queue = KeyQueue(size=(4, 2))
        >>> queue.enqueue(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        >>> queue.enqueue(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
        >>> queue.keys[0].tolist(), int(queue.position)
        ([1.0, 0.0], 1)
    """

    keys: Tensor
    position: Tensor

    def __init__(self, size: Sequence[int], gather_distributed: bool = False) -> None:
        super().__init__()
        if len(size) != 2 or any(not isinstance(n, int) or n < 1 for n in size):
            raise ValueError(f"size must be a pair (n, dim) of positive integers, got {size}.")
        self.gather_distributed = gather_distributed
        keys = nn.functional.normalize(torch.randn(*size), dim=1)
        self.register_buffer("keys", keys)
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self._steps = 0
        # The number of consecutive steps with a bad key, and the first step that exceeded the
        # tolerated number (0 for none). Both are on the keys' device.
        self._bad_steps: tuple[Tensor, Tensor] | None = None
        # The latest keys, the rows they were written to, and the keys they overwrote.
        self._last_enqueued: tuple[Tensor, Tensor, Tensor] | None = None

    def follow(self, device: torch.device) -> None:
        """Moves the queue to a device if it is on another one."""
        if self.keys.device != device:
            # Not self.to(device), which torch 2.10 does not compile with fullgraph=True.
            self.keys, self.position = self.keys.to(device), self.position.to(device)
            self._bad_steps = self._last_enqueued = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def enqueue(self, keys: Tensor, float16: bool = False) -> None:
        """Overwrites the oldest keys of the queue.

        A key that is NaN or infinite never enters the queue: it would make every loss NaN until it
        is overwritten. On a CPU ``enqueue`` raises at once and leaves the queue as it was. On other
        devices it skips such keys and raises within 100 steps, so that no step waits.

        Float16 training produces such keys now and then: the GradScaler skips the step and lowers
        its scale. With ``float16=True`` ``enqueue`` skips them on every device, and raises only
        after more than 20 such steps in a row.

        Args:
            keys: New keys, shape (batch, dim), oldest first. If the batch is larger than the
                queue, only its newest n rows are kept.
            float16: Whether this is a step of float16 training with a GradScaler.

        Raises:
            ValueError: If keys is not of shape (batch, dim), or, with gather_distributed, if the
                processes' batches differ in size.
            FloatingPointError: If a key is not finite. The message names the step, counted from 1
                since this process created the queue.
        """
        size, dim = self.keys.shape
        if keys.dim() != 2 or keys.shape[1] != dim:
            raise ValueError(f"keys must have shape (batch, {dim}), got {tuple(keys.shape)}.")
        self.follow(keys.device)
        if self.gather_distributed:
            check_equal_sizes(len(keys))
            keys = gather_rows(keys)
        self._steps += 1
        finite = keys.isfinite().all(dim=1, keepdim=True)  # n x 1
        self._raise_if_not_finite(finite.all(), TOLERATED_STEPS_IN_FLOAT16 if float16 else 0)
        newest = keys[-size:].to(self.keys)
        rows = (self.position + torch.arange(len(newest), device=self.keys.device)) % size
        overwritten = self.keys[rows]
        self.keys[rows] = torch.where(finite[-size:], newest, overwritten)
        self.position.copy_((self.position + len(newest)) % size)
        self._last_enqueued = (keys.detach(), rows, overwritten)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def keys_before(self, keys: Tensor) -> Tensor:
        """Returns the queue as it was before the latest batch.

        Activation checkpointing repeats the forward during the backward pass and needs the queue
        of the first time.

        Args:
            keys: The latest batch of keys, shape (batch, dim).

        Returns:
            A copy of the queue, shape (n, dim).

        Raises:
            RuntimeError: If the latest batch that was enqueued is another one.
        """
        if self.gather_distributed:
            keys = gather_rows(keys)
        latest, rows, overwritten = self._last_enqueued or (keys.new_empty(0), None, None)
        if latest.shape != keys.shape or not torch.allclose(
            latest, keys, atol=1e-3, equal_nan=True
        ):
            raise RuntimeError(
                "Activation checkpointing computes the loss again in the backward pass, but the "
                "latest keys in the queue are those of another batch. Call backward before the "
                "next forward, and torch.utils.checkpoint with use_reentrant=False."
            )
        assert rows is not None
        assert overwritten is not None
        return self.keys.index_copy(0, rows, overwritten)

    def _steps_between_looks(self) -> int:
        # Reading the count makes a GPU wait.
        return 1 if self.keys.device.type == "cpu" else 100

    def _raise_if_not_finite(self, finite: Tensor, tolerated: int) -> None:
        """Counts the steps with a key that is not finite; reads the count now and then."""
        if self._bad_steps is None:
            zero = torch.zeros((), dtype=torch.int64, device=finite.device)
            self._bad_steps = zero, zero
        in_a_row, failed = self._bad_steps
        in_a_row = (in_a_row + 1).masked_fill(finite, 0)
        is_first = (in_a_row > tolerated) & (failed == 0)
        failed = failed.masked_fill(is_first, self._steps)
        self._bad_steps = in_a_row, failed
        if self._steps % self._steps_between_looks() == 0 and (step := int(failed)):
            self._bad_steps = None
            after = f" after {tolerated} such steps in a row" if tolerated else ""
            raise FloatingPointError(
                f"A key is NaN or infinite in step {step} of this process (rank {dist.rank()})"
                f"{after}; it did not enter the queue. The network has probably diverged: lower "
                "the learning rate or check the images."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeyQueue:
        keys = self.keys
        self._bad_steps = self._last_enqueued = None  # the queue may change its device
        super()._apply(fn, recurse)
        if self.keys.dtype in (torch.float16, torch.bfloat16):
            # module.half() is meant for weights. Rounded keys cannot be restored, so keep them.
            self.keys = keys.to(self.keys.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        missing = [name for name in ("keys", "position") if prefix + name not in state_dict]
        if missing:
            warnings.warn(
                f"The checkpoint has no queue ({prefix}{missing[0]} is missing), like Lightly's "
                "checkpoints. Training continues with the keys that are in the queue now.",
                stacklevel=2,
            )
            own = {"keys": self.keys, "position": self.position}
            state_dict |= {prefix + name: own[name] for name in missing}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._last_enqueued = None

    def extra_repr(self) -> str:
        """Shows the size in the module's printed form."""
        size, dim = self.keys.shape
        return f"size=({size}, {dim}), gather_distributed={self.gather_distributed}"
