"""Coordinates the processes of one run: rank zero prepares it, and all end together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
from filelock import FileLock
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only

# Environment variable: id of the process from which Lightning's launcher started the others.
_FIRST_PROCESS = "MIXCO_FIRST_PROCESS"
# Environment variable: id of the process of the study that started this program.
STUDY_PROCESS = "MIXCO_STUDY_PROCESS"


class OtherProcessError(RuntimeError):
    """Another process of the run failed, and reports it."""


def is_rank_zero() -> bool:
    """Returns whether this process is the first; works before the processes have met."""
    return getattr(rank_zero_only, "rank", 0) == 0


@rank_zero_only
def print_on_rank_zero(text: str) -> None:
    """Prints once, in the first process."""
    print(text, flush=True)


def find_launcher() -> ClusterEnvironment | None:
    """Returns the environment of torchrun or SLURM, or None if Lightning starts the processes.

    Raises:
        ValueError: If Lightning cannot read SLURM's options.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect():
        # A requeued job would otherwise resume from a checkpoint in the middle of an epoch.
        try:
            return SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
    return None


def check_processes(devices: int, num_nodes: int) -> None:
    """Raises a ValueError if torchrun or srun has started another number of processes.

    Otherwise each would train its own run, in the same folder.
    """
    launcher = find_launcher()
    if launcher is not None and launcher.world_size() != devices * num_nodes:
        raise ValueError(
            f"{launcher.world_size()} processes were started for --devices {devices} --num_nodes "
            f"{num_nodes}: give the number of processes on each node as --devices and the number "
            "of nodes as --num_nodes."
        )


def prepare_on_rank_zero(trainer: pl.Trainer, prepare: Callable[[], None]) -> None:
    """Lets the first process prepare a run while the others wait; all fail if it fails.

    Lightning starts its processes after the preparation. Those of torchrun and SLURM exist from the
    beginning and meet here.

    Raises:
        ValueError: Or OSError, as ``prepare`` raised it in the first process.
        OtherProcessError: In the other processes.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    meet = trainer.world_size > 1 and not isinstance(environment, LightningEnvironment)
    if not meet:
        if is_rank_zero():
            prepare()
        return
    trainer.strategy.setup_environment()  # fit skips it then
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
        raise OtherProcessError("The first process could not prepare the run.")


@contextmanager
def one_at_a_time(folder: Path, create: bool) -> Iterator[None]:
    """Lets the processes open a folder of data one after the other.

    The first downloads or decodes, and the others find it done. A single process does not wait, nor
    do processes that may not write to the folder.

    Args:
        folder: The data's folder, or an archive that is unpacked beside itself.
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
    """Returns the environment for the trainer, unless it is Lightning's own."""
    launcher = find_launcher()
    return [] if launcher is None else [launcher]


def end_with_parent() -> None:
    """Ends this process soon after the process that it works for.

    That is the first process of its run, if Lightning's launcher started it, and the study, if a
    study started the run: a study that was killed leaves no program behind that writes to its run.

    Does nothing under torchrun and SLURM, which end their processes, and on Windows, where a
    process keeps the id of a parent that has ended.
    """
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    parent = os.environ.get(STUDY_PROCESS if is_first else _FIRST_PROCESS)
    if parent is None or sys.platform == "win32":
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        _exit_now(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def _exit_now(code: int) -> NoReturn:
    """Ends this process and its workers without exit handlers, which may wait for others."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        for worker in multiprocessing.active_children():
            worker.kill()
    finally:
        os._exit(code)


class EndTogether(Callback):
    """Ends every process of a run when one of them fails, with one line.

    A process in a collective, such as NCCL's, does not notice that another one is gone. A failing
    process must not wait either, as Lightning's teardown does when it copies the weights from a GPU
    during a collective. So a failing process reports and exits as soon as Lightning hands it the
    exception. With Lightning's launcher the first process then kills the others; it also watches
    them and ends when one fails. Under torchrun and SLURM the launcher ends the others.

    One failure often makes several processes fail. The other processes delay their report, so that
    they end before they print it. Does nothing in a run of one process.

    Args:
        trainer: The trainer, before it fits.
        run: The run's folder; the traceback of an unexpected error is written there.
        describe: Returns the line for an exception, or None for an unexpected one.
        say_stopped: Prints how to resume the run.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        run: Path,
        describe: Callable[[BaseException], str | None],
        say_stopped: Callable[[], None],
    ) -> None:
        self._run = run
        self._describe = describe
        self._say_stopped = say_stopped
        self._launcher: Any = trainer.strategy.launcher
        self._first_child = trainer.node_rank * trainer.num_devices + 1
        self._children: list[subprocess.Popen[bytes]] = []
        self._is_over = threading.Event()
        self._ending = threading.Lock()
        if hasattr(self._launcher, "procs"):  # this process is the one that starts the others
            os.environ[_FIRST_PROCESS] = str(os.getpid())
            threading.Thread(target=self._watch, name="watch-processes", daemon=True).start()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores SIGTERM's default, which ends a process at once."""
        if trainer.world_size > 1:
            # Lightning's handler starts a broadcast that other processes may never join. The run
            # can resume from its last checkpoint.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stops watching after the fit, because the first process finishes the run alone."""
        self._is_over.set()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Reports the exception and ends the process."""
        if trainer.world_size == 1:
            return
        line = "" if isinstance(exception, KeyboardInterrupt) else self._describe(exception)
        if not is_rank_zero():
            time.sleep(3)
        elif line is None:
            time.sleep(1)  # _watch ends this process here if a child's end caused the error
        if line is None:
            line = self._save_traceback(exception, trainer.global_rank)
        self._end(line)

    def _save_traceback(self, exception: BaseException, rank: int) -> str:
        """Writes the traceback to a file and returns the line that names it."""
        path = self._run / "traceback.txt"
        try:
            path.write_text("".join(traceback.format_exception(exception)))
        except OSError:
            traceback.print_exception(exception)
        message = " ".join(f"{type(exception).__name__}: {exception}".split())[:500]
        return f"error: process {rank} failed with {message} (its traceback is in {path})"

    def _watch(self) -> None:
        """Watches the children in the first process and ends the run when one fails."""
        while not self._is_over.wait(0.2):
            self._take_children()
            codes = [child.poll() for child in self._children]
            failed = [(rank, code) for rank, code in enumerate(codes, self._first_child) if code]
            if failed:
                rank, code = failed[0]
                # A child that was not killed has reported its error; Ctrl-C needs no report.
                is_killed = code < 0 and code != -signal.SIGINT
                self._end(
                    f"error: process {rank} was killed by signal {-code}" if is_killed else ""
                )

    def _take_children(self) -> None:
        # Lightning's observer polls this list every 5 seconds. It would kill this process before it
        # reports, and would not kill the children if this process fails.
        while self._launcher.procs:
            self._children.append(self._launcher.procs.pop(0))

    def _end(self, line: str) -> NoReturn:
        """Prints the line, kills the children and ends this process."""
        with self._ending:  # never released: a second thread waits here for the end
            with suppress(Exception):  # a closed output must not keep the processes alive
                if is_rank_zero():
                    self._say_stopped()
                if line:
                    print(line, file=sys.stderr, flush=True)
            if hasattr(self._launcher, "procs"):
                self._take_children()
            for child in self._children:
                child.kill()
            for child in self._children:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=10)
            _exit_now(1)
