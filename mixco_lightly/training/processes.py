"""Several processes of one run: which is the first, which prepares, and how all of them end."""

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

# Environment variable with the id of the process that started the others by Lightning's launcher.
_FIRST_PROCESS = "MIXCO_FIRST_PROCESS"


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


def end_with_first_process() -> None:
    """Ends this process soon after the one that started it with Lightning's launcher has ended.

    Does nothing in the first process, in those of torchrun and SLURM, which end them themselves,
    and on Windows, where a process keeps the id of a parent that has ended.
    """
    first = os.environ.get(_FIRST_PROCESS)
    if first is None or os.environ.get("LOCAL_RANK", "0") == "0" or sys.platform == "win32":
        return

    def watch() -> None:
        while os.getppid() == int(first):
            time.sleep(0.5)
        _exit_now(1)

    threading.Thread(target=watch, name="watch-first-process", daemon=True).start()


def _exit_now(code: int) -> NoReturn:
    """Ends this process and its workers without the exit handlers, which may wait for others."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        for worker in multiprocessing.active_children():
            worker.kill()
    finally:
        os._exit(code)


class EndTogether(Callback):
    """Ends every process of a run when one of them fails, with one line.

    A process that waits for the others, such as in an NCCL collective, does not notice that one of
    them is gone. A process that fails must not wait for them either, as Lightning's teardown does
    when it copies the weights from a GPU with a collective under way. So a process that fails
    reports and exits as soon as Lightning hands it the exception. With Lightning's launcher the
    first process then kills the others; it also watches them, and ends when one of them fails. With
    torchrun and SLURM the launcher ends the others.

    One failure often makes several processes fail. The others therefore delay their report, so that
    they are ended before it. Does nothing in a run of one process.

    Args:
        trainer: The trainer, before it fits.
        run: The run's folder, where the traceback of an unexpected error is written.
        describe: Returns the line for an exception, or None for an unexpected one.
        say_stopped: Prints how to go on with the run.
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
        """Lets SIGTERM end a process at once."""
        if trainer.world_size > 1:
            # Lightning's handler sends a broadcast, which waits for processes that do not take
            # part. The run can go on from its last checkpoint.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stops watching after the fit: the first process finishes the run alone."""
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
        """Waits in the first process for a child that fails."""
        while not self._is_over.wait(0.2):
            self._take_children()
            codes = [child.poll() for child in self._children]
            failed = [(rank, code) for rank, code in enumerate(codes, self._first_child) if code]
            if failed:
                rank, code = failed[0]
                # A child that was not killed has reported its error, and Ctrl-C needs no report.
                is_killed = code < 0 and code != -signal.SIGINT
                self._end(
                    f"error: process {rank} was killed by signal {-code}" if is_killed else ""
                )

    def _take_children(self) -> None:
        # Lightning's own observer looks at this list every 5 seconds. It would kill this process
        # before it can report, and leave the children alone if this process fails.
        while self._launcher.procs:
            self._children.append(self._launcher.procs.pop(0))

    def _end(self, line: str) -> NoReturn:
        """Prints the line, kills the children and ends this process."""
        with self._ending:  # for good: a second thread waits here for the end
            with suppress(Exception):  # an output that is gone must not keep the processes
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
