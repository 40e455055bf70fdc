"""The queue of earlier keys that MoCo takes its negatives from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightly.utils import dist
from torch import Tensor, nn

from mixco_lightly.loss.gather import check_equal_sizes, gather_rows

# In a row. The GradScaler of float16 training skips such steps while it lowers its scale.
TOLERATED_STEPS_IN_FLOAT16 = 20


class KeyQueue(nn.Module):
    """Stores the newest key projections in a ring of two saved buffers.

    Unlike Lightly's memory bank it is part of ``state_dict``, so a resumed run continues with the
    keys it had. It accepts any batch size and wraps exactly. Like Lightly's, it moves to the device
    of the keys by itself. A checkpoint without a queue loads with a warning. ``module.half()``
    leaves the keys in float32.

    - MoCo, 2020, https://arxiv.org/abs/1911.05722, section 3.2

    Attributes:
        keys: The keys, float32 of shape (n, dim), unit rows. Before the first keys arrive they
            are random unit vectors, as in MoCo and Lightly.
        position: Row that the next key is written to, int64 scalar: the oldest key's row.

    Args:
        size: (n, dim), the number of keys and their dimension.
        gather_distributed: If True, the keys of all processes are enqueued on every process,
            in the order of the ranks, which keeps the queues equal. All processes must then
            enqueue the same number of keys.

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
        # How many steps in a row had a bad key, and the first step that had one too many (0 for
        # none); on the keys' device.
        self._bad_steps: tuple[Tensor, Tensor] | None = None
        # The latest keys, the rows they went to, and what these held before.
        self._last_enqueued: tuple[Tensor, Tensor, Tensor] | None = None

    def follow(self, device: torch.device) -> None:
        """Moves the queue to a device, unless it is there already."""
        if self.keys.device != device:
            self.to(device)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def enqueue(self, keys: Tensor, float16: bool = False) -> None:
        """Overwrites the oldest keys of the queue.

        A key that is NaN or infinite never enters: one NaN would make every loss NaN until it is
        overwritten. On a CPU ``enqueue`` raises at once and leaves the queue as it was. On other
        devices it skips such keys, and raises within 100 steps, so that no step waits.

        In float16 training such keys are expected: the GradScaler skips the step and lowers its
        scale. With ``float16=True`` they are skipped on every device, and the error comes only
        after more than 20 such steps in a row.

        Args:
            keys: New keys, shape (batch, dim), oldest first. Of a batch larger than the queue
                the newest n rows stay.
            float16: Whether the step is one of float16 training with a GradScaler.

        Raises:
            ValueError: If keys is not of shape (batch, dim), or, with gather_distributed, if the
                processes have unequally many.
            FloatingPointError: If a key is not finite. It names the step, counted from 1 since
                this process made the queue.
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
        """Returns the queue as it was before the latest batch, for a forward that is repeated.

        Activation checkpointing computes the forward again during the backward, and needs the same
        queue again.

        Args:
            keys: The latest batch of keys, shape (batch, dim).

        Returns:
            A copy of the queue, shape (n, dim).

        Raises:
            RuntimeError: If the latest batch had other keys.
        """
        if self.gather_distributed:
            keys = gather_rows(keys)
        latest, rows, overwritten = self._last_enqueued or (keys.new_empty(0), None, None)
        if latest.shape != keys.shape or not torch.allclose(
            latest, keys, atol=1e-3, equal_nan=True
        ):
            raise RuntimeError(
                "The loss is computed again in the backward pass (activation checkpointing), but "
                "the batch that the queue was given last was another one. Call backward before the "
                "next forward, and torch.utils.checkpoint with use_reentrant=False."
            )
        assert rows is not None
        assert overwritten is not None
        return self.keys.index_copy(0, rows, overwritten)

    def _steps_between_looks(self) -> int:
        # To look whether the keys were finite makes a GPU wait.
        return 1 if self.keys.device.type == "cpu" else 100

    def _raise_if_not_finite(self, finite: Tensor, tolerated: int) -> None:
        """Counts the steps with a key that is not finite, and raises when it looks at the count."""
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
                f"{after}; it did not enter the queue. The network has probably diverged."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeyQueue:
        keys = self.keys
        self._bad_steps = self._last_enqueued = None  # they may change the device
        super()._apply(fn, recurse)
        if self.keys.dtype in (torch.float16, torch.bfloat16):
            # module.half() is for weights; keys that were rounded could not be restored.
            self.keys = keys.to(self.keys.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        missing = [name for name in ("keys", "position") if prefix + name not in state_dict]
        if missing:
            warnings.warn(
                f"The checkpoint has no queue ({prefix}{missing[0]} is missing), as Lightly's have "
                "none: training goes on with the keys that are in the queue now.",
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
