"""The queue of earlier keys that MoCo takes its negatives from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightly.utils import dist
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """First-in first-out queue of key projections, as a ring in two saved buffers.

    Unlike Lightly's memory bank it is part of ``state_dict``, so that a resumed run goes on
    with the keys it had; it accepts any batch size and wraps exactly. A checkpoint without a queue
    loads with a warning. ``module.half()`` leaves the keys in float32.

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

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Overwrites the oldest keys of the queue.

        A key that is not finite is left out, and the old key stays in its row: one NaN would make
        every loss NaN until the queue has gone round.

        Args:
            keys: New keys, shape (batch, dim), oldest first. Of a batch larger than the queue
                the newest n rows stay.

        Raises:
            ValueError: If keys is not of shape (batch, dim).
        """
        size, dim = self.keys.shape
        if keys.dim() != 2 or keys.shape[1] != dim:
            raise ValueError(f"keys must have shape (batch, {dim}), got {tuple(keys.shape)}.")
        if self.gather_distributed and dist.world_size() > 1:
            keys = torch.cat(dist.gather(keys))
        keys = keys[-size:]
        rows = (self.position + torch.arange(len(keys), device=self.keys.device)) % size
        # Without a look at the values on the host, which would stall a GPU.
        finite = keys.isfinite().all(dim=1, keepdim=True)  # n x 1
        self.keys[rows] = torch.where(finite, keys.to(self.keys), self.keys[rows])
        self.position.copy_((self.position + len(keys)) % size)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeyQueue:
        keys = self.keys
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

    def extra_repr(self) -> str:
        """Shows the size in the module's printed form."""
        size, dim = self.keys.shape
        return f"size=({size}, {dim}), gather_distributed={self.gather_distributed}"
