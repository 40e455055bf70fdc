"""Rows of all processes, with a check that they fit together."""

from __future__ import annotations

import warnings

import torch
from lightly.utils import dist
from torch import Tensor, distributed


def warn_without_process_group() -> None:
    """Warns if a loss with gather_distributed=True has nothing to gather from."""
    if not distributed.is_initialized():
        warnings.warn(
            "gather_distributed=True, but there is no process group: the loss has the keys of "
            "this process only. Call torch.distributed.init_process_group first (Lightning "
            "does so with more than one device), or pass gather_distributed=False.",
            stacklevel=4,
        )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gather_rows(x: Tensor) -> Tensor:
    """Concatenates the rows of all processes in the order of their ranks, with gradient.

    Args:
        x: Rows of this process, shape (n, ...). All processes must have equally many.

    Returns:
        Rows of all processes, shape (world_size * n, ...); ``x`` itself on one process. The
        gradient of a process's rows is the sum over what all processes make of them.

    Raises:
        ValueError: On every process, if they do not have equally many rows.
    """
    world_size = dist.world_size()
    if world_size == 1:
        return x
    # Unequal sizes would hang one process or end it without a word. To look at the sizes stalls
    # a GPU for an instant, in each step: whether to look must not depend on what one process has.
    size = torch.tensor([len(x)], device=x.device)
    gathered = [torch.empty_like(size) for _ in range(world_size)]
    distributed.all_gather(gathered, size)
    sizes = torch.cat(gathered).tolist()
    if min(sizes) != max(sizes):
        raise ValueError(
            "With gather_distributed=True all processes need batches of one size, "
            f"got {sizes} (by rank). drop_last=True in the DataLoader gives them."
        )
    return torch.cat(dist.gather(x))
