"""Gathers rows from all processes and checks that the processes have equally many."""

from __future__ import annotations

import warnings
from weakref import WeakKeyDictionary

import torch
from lightly.utils import dist
from torch import Tensor, distributed

# A gloo group for each default process group that cannot exchange CPU tensors.
_cpu_groups: WeakKeyDictionary[distributed.ProcessGroup, distributed.ProcessGroup] = (
    WeakKeyDictionary()
)


def warn_without_process_group() -> None:
    """Warns if a loss with gather_distributed=True has nothing to gather from."""
    if not distributed.is_initialized():
        warnings.warn(
            "gather_distributed=True, but there is no process group: the loss sees only the keys "
            "of this process. Call torch.distributed.init_process_group first (Lightning does so "
            "with more than one device), or pass gather_distributed=False.",
            stacklevel=4,
        )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def check_equal_sizes(size: int) -> None:
    """Checks that all processes have batches of one size.

    Gathering unequal batches hangs or aborts the processes. Every process must call this in every
    step, whatever its own size is. The processes exchange their sizes on the CPU, so no GPU waits.
    They use the default process group if it has a backend for CPU tensors, otherwise a gloo group
    that the first call creates. Set ``GLOO_SOCKET_IFNAME`` if gloo picks the wrong network
    interface.

    Args:
        size: Number of rows of this process.

    Raises:
        ValueError: On every process, if the sizes differ. The message lists them.
    """
    world_size = dist.world_size()
    if world_size == 1:
        return
    own = torch.tensor([size], device="cpu")
    gathered = [torch.empty_like(own) for _ in range(world_size)]
    distributed.all_gather(gathered, own, group=_cpu_group())
    sizes = torch.cat(gathered).tolist()
    if min(sizes) != max(sizes):
        raise ValueError(
            f"All processes need batches of one size, got {sizes} (by rank). "
            "Pass drop_last=True to the DataLoader."
        )


def _cpu_group() -> distributed.ProcessGroup:
    """Returns a group that exchanges CPU tensors between all processes."""
    default = distributed.group.WORLD
    assert default is not None
    if "cpu:" in distributed.get_backend_config(default):
        return default
    if default not in _cpu_groups:
        group = distributed.new_group(backend="gloo")
        assert not isinstance(group, int)  # every process is in it
        _cpu_groups[default] = group
    return _cpu_groups[default]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gather_rows(x: Tensor) -> Tensor:
    """Concatenates the rows of all processes in the order of their ranks, with gradient.

    Args:
        x: Rows of this process, shape (n, ...). All processes must have equally many: call
            :func:`check_equal_sizes` once a step, before the first gather.

    Returns:
        Rows of all processes, shape (world_size * n, ...), or ``x`` itself on one process. The
        gradient of a process's rows is the sum of the gradients from all processes.
    """
    return x if dist.world_size() == 1 else torch.cat(dist.gather(x))
