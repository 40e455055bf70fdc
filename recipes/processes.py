"""Several processes of one run: who is first, who prepares, who waits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from filelock import FileLock
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.utilities import rank_zero_only


def is_rank_zero() -> bool:
    """Whether this process is the first, also before the processes have met."""
    return getattr(rank_zero_only, "rank", 0) == 0


@rank_zero_only
def print_on_rank_zero(text: str) -> None:
    """Prints once, whatever the number of processes."""
    print(text, flush=True)


def find_launcher() -> ClusterEnvironment | None:
    """The environment of torchrun or SLURM, or None where Lightning starts the processes itself.

    Raises:
        ValueError: If SLURM's options are not such that Lightning can read them.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect():
        # A requeued job would otherwise go on from a checkpoint in the middle of an epoch.
        try:
            return SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
    return None


def check_processes(devices: int, num_nodes: int) -> None:
    """Raises a ValueError if torchrun or srun has started another number of processes.

    Each of them would else train a run of its own, in the same folder.
    """
    launcher = find_launcher()
    if launcher is not None and launcher.world_size() != devices * num_nodes:
        raise ValueError(
            f"{launcher.world_size()} processes were started for --devices {devices} --num_nodes "
            f"{num_nodes}: give the number of processes on each node as --devices and the number "
            "of nodes as --num_nodes."
        )


def prepare_on_rank_zero(trainer: pl.Trainer, prepare: Callable[[], None]) -> None:
    """Lets the first process prepare a run while the others wait; they end with it if it fails.

    Processes that Lightning starts come into being after the preparation. Those of torchrun and
    SLURM are there from the beginning, and meet here.

    Raises:
        ValueError: Or OSError, what ``prepare`` raised in the first process.
        SystemExit: In the other processes, with exit code 1 and without a message.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    meet = trainer.world_size > 1 and not isinstance(environment, LightningEnvironment)
    if not meet:
        if is_rank_zero():
            prepare()
        return
    trainer.strategy.setup_environment()  # Lightning's fit finds that it was done
    error: Exception | None = None
    if is_rank_zero():
        try:
            prepare()
        except (ValueError, OSError) as raised:
            error = raised
    failed = trainer.strategy.broadcast(error is not None)
    if error is not None:
        raise error
    if failed:
        raise SystemExit(1)


@contextmanager
def one_at_a_time(folder: Path, create: bool) -> Iterator[None]:
    """Lets one process after the other open a folder of data, of which the first may write to it.

    So the first downloads or decodes, and the others find it done. A single process, and processes
    that may not write to the folder, do not wait.

    Args:
        folder: Where the data is, or its archive, which is unpacked beside itself.
        create: Whether to make the folder if it is missing.
    """
    folder = folder.parent if folder.is_file() else folder
    several = "LOCAL_RANK" in os.environ or find_launcher() is not None
    if several and create:
        folder.mkdir(parents=True, exist_ok=True)
    if not several or not os.access(folder, os.W_OK):
        yield
        return
    with FileLock(folder / ".lock"):
        yield


def trainer_plugins() -> list[Any]:
    """The environment for Lightning's trainer, where it is not Lightning's own."""
    launcher = find_launcher()
    return [] if launcher is None else [launcher]
