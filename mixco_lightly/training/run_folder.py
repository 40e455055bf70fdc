"""Begins and resumes a run's folder; it always holds a readable checkpoint."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, cast

import torch
import yaml
from pytorch_lightning.plugins.io import TorchCheckpointIO

from mixco_lightly.files import TEMPORARY_PREFIX, name_write_errors, replace_file
from mixco_lightly.training.option_files import read_options
from mixco_lightly.training.options import options_of_use

_FREE_OPTIONS = options_of_use("free")
_COMMAND_OPTIONS = options_of_use("command")
# Options that the files of earlier versions do not have, and what those versions did if not None.
_EARLIER = {"mixing": "mixup", "mix_probability": 1.0, "chunk_size": 0}
_RUN_FILES = (
    "metrics.csv",
    "loggers.json",
    "broken_images.txt",
    "traceback.txt",
    "model.safetensors",
    "config.json",
    "backbone.json",
    "backbone.safetensors",  # the weights of an earlier version's export
    "curves.png",
    "summary.json",
    "report.html",
    "evaluation.json",
    "evaluation.md",
    "evaluation.html",
    "mutual_information.json",
    "mutual_information.md",
    "mutual_information.png",
)
# A checkpoint ends with this and the SHA-256 of all bytes before it, in hexadecimal. It is in the
# file itself because two files cannot be replaced at once.
_TRAILER = b"mixco-lightly checkpoint, sha256 "
_TRAILER_BYTES = len(_TRAILER) + 64


def checkpoint_path(run: Path) -> Path:
    """Returns the path of the checkpoint that a run resumes from."""
    return run / "checkpoints" / "last.ckpt"


def prepare_run(run: Path, options: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """Creates the run's folder and writes its options, or checks that the run can resume.

    Raises:
        ValueError: If the run to resume had other options.
        OSError: If there is nothing to resume, if the folder has a run and is not to be
            overwritten, or if it cannot be written to.
    """
    options = {name: value for name, value in options.items() if name not in _COMMAND_OPTIONS}
    path, checkpoint = run / "config.yaml", checkpoint_path(run)
    if resume:
        if not checkpoint.is_file() or not path.is_file():
            missing = path if checkpoint.is_file() else checkpoint
            raise FileNotFoundError(f"There is no run to resume in {run}: {missing} is missing.")
        changed = find_changes(read_options(path), options)
        if changed:
            raise ValueError(
                f"The run in {run} was started with {'; '.join(changed)}. A resumed run keeps its "
                f"options: give --config {path} --resume without the changed ones, or begin a new "
                f"run in another --output_dir. Only {', '.join(sorted(_FREE_OPTIONS))}, devices "
                "and num_nodes with the same product and, with augment device, num_workers may "
                "change."
            )
        sweep(run)
        return
    if run.exists() and any(run.iterdir()):
        if not overwrite:
            raise FileExistsError(
                f"{run} is not empty: add --resume to go on with its run, --overwrite to replace "
                "it, or choose another --output_dir."
            )
        for name in _RUN_FILES:
            (run / name).unlink(missing_ok=True)
        shutil.rmtree(run / "tensorboard", ignore_errors=True)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    sweep(run)
    for old in checkpoint.parent.glob("*.ckpt"):
        old.unlink()
    with replace_file(path) as file:
        file.write(yaml.safe_dump(options, sort_keys=False).encode())


def find_changes(before: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Returns the changed options that decide a run's result, so that it cannot resume."""
    before = {**_EARLIER, **before}
    free = _FREE_OPTIONS | _COMMAND_OPTIONS
    # A process's random numbers depend on its rank among all processes, not on its node.
    if _count_processes(before) == _count_processes(options):
        free |= {"devices", "num_nodes"}
    # Workers that augment draw random numbers; workers that only load draw none.
    if before.get("augment") == options.get("augment") == "device":
        free |= {"num_workers"}
    return [
        f"{name} {before.get(name)}, not {value}"
        for name, value in options.items()
        if name not in free and value != before.get(name)
    ]


def _count_processes(options: Mapping[str, Any]) -> int | None:
    """Returns the number of processes; None if an edited file has no numbers there."""
    counts = [options.get(name, 1) for name in ("devices", "num_nodes")]
    return math.prod(counts) if all(isinstance(count, int) for count in counts) else None


def probe_output(run: Path) -> None:
    """Checks that a run's folder can be written to, and leaves nothing there.

    Raises:
        WriteError: If it cannot; the message names the folder and the reason.
    """
    folder = checkpoint_path(run).parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with name_write_errors(run), tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"probe")


def sweep(run: Path) -> None:
    """Removes the temporary files of killed writes."""
    for folder in (run, checkpoint_path(run).parent):
        for temporary in folder.glob(f"{TEMPORARY_PREFIX}*"):
            temporary.unlink(missing_ok=True)


class CheckpointFiles(TorchCheckpointIO):
    """Writes Lightning's checkpoints so that a kill at any moment leaves a readable one.

    Lightning's own plugin writes to the system's temporary folder first. If that is on another file
    system, its last step copies over the only good checkpoint.

    A checkpoint contains the run's options and ends with its SHA-256, which :func:`read_steps`
    checks.

    Args:
        options: The options of the run.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._options = dict(options or {})

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Replaces the file."""
        with replace_file(Path(path)) as file:
            hashed = _HashedFile(file)
            try:
                # torch.save only calls write and flush.
                torch.save({**checkpoint, "options": self._options}, cast(IO[bytes], hashed))
            except RuntimeError as error:
                # torch only says that a write failed, not why.
                raise (hashed.error or error) from error
            file.write(_TRAILER + hashed.digest.hexdigest().encode())


class _HashedFile:
    """Hashes a file as it is written, and remembers the error of a write."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self.error: OSError | None = None
        self._file = file

    def write(self, block: bytes) -> int:
        self.digest.update(block)
        try:
            return self._file.write(block)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def check_digest(checkpoint: Path) -> None:
    """Raises a ValueError if a checkpoint has changed since it was written."""
    digest = hashlib.sha256()
    with checkpoint.open("rb") as file:
        left = checkpoint.stat().st_size - _TRAILER_BYTES
        while left > 0 and (block := file.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
        trailer = file.read()
    if trailer[: len(_TRAILER)] != _TRAILER:
        raise ValueError("it does not end with a checksum")
    if trailer[len(_TRAILER) :] != digest.hexdigest().encode():
        raise ValueError("its SHA-256 is not the one that was written with it")


def read_steps(checkpoint: Path, options: Mapping[str, Any] | None = None) -> int:
    """Returns the number of steps before a checkpoint was saved.

    Args:
        checkpoint: The checkpoint.
        options: Options of the run that resumes from it. Default: not checked.

    Raises:
        ValueError: If it is damaged, or belongs to a run with other options.
    """
    try:
        check_digest(checkpoint)
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        steps, before = int(state["global_step"]), dict(state["options"])
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{checkpoint} is damaged or not a checkpoint of these recipes: {reason}. Restore a "
            "copy of it, or start again with --overwrite."
        ) from error
    changed = find_changes(before, options or {})
    if changed:
        raise ValueError(f"{checkpoint} belongs to another run: it has {'; '.join(changed)}.")
    return steps
