"""The folder of a run: begun, resumed, and never left without a checkpoint that can be read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
import yaml
from pytorch_lightning.plugins.io import TorchCheckpointIO

# Options that may differ when a run is resumed: they change where it runs, not what it trains.
# (num_workers is not one: every worker draws augmentations of its own.)
_FREE_OPTIONS = {
    *("data_dir", "download", "keep_decoded", "output_dir"),
    *("protocol", "random_init", "knn_k", "knn_every_n_epochs", "keep_every_n_epochs"),
}
# Options of the command, not of the run.
_RUN_OPTIONS = {"resume", "overwrite"}
_RUN_FILES = (
    "metrics.csv",
    "backbone.safetensors",
    "backbone.json",
    "curves.png",
    "summary.json",
    "evaluation.json",
    "evaluation.md",
    "mutual_information.json",
    "mutual_information.md",
    "mutual_information.png",
)
_TEMPORARY = ".partial-"


def checkpoint_path(run: Path) -> Path:
    """Where a run keeps the checkpoint that it goes on from."""
    return run / "checkpoints" / "last.ckpt"


def prepare_run(run: Path, options: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """Makes the run's folder and writes its options, or checks that the run can go on.

    Raises:
        ValueError: If the run to resume had other options.
        OSError: If there is nothing to resume, if the folder has a run and is not to be
            overwritten, or if it cannot be written to.
    """
    options = {name: value for name, value in options.items() if name not in _RUN_OPTIONS}
    path, checkpoint = run / "config.yaml", checkpoint_path(run)
    if resume:
        if not checkpoint.is_file() or not path.is_file():
            missing = path if checkpoint.is_file() else checkpoint
            raise FileNotFoundError(f"There is no run to resume in {run}: {missing} is missing.")
        before = yaml.safe_load(path.read_text())
        changed = [
            f"{name} {before.get(name)}, not {value}"
            for name, value in options.items()
            if name not in _FREE_OPTIONS and value != before.get(name)
        ]
        if changed:
            raise ValueError(
                f"The run in {run} was started with {'; '.join(changed)}: resume it with "
                f"--config {path} --resume."
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


def sweep(run: Path) -> None:
    """Removes what writes that were killed have left behind."""
    for folder in (run, checkpoint_path(run).parent):
        for temporary in folder.glob(f"{_TEMPORARY}*"):
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the path's place when it is written whole and is on the disk.

    A kill at any moment leaves the old file or the new one, and perhaps a temporary file beside it
    for :func:`sweep`.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's file is its owner's alone; others may read the folder too.
        os.chmod(temporary, path.parent.stat().st_mode & 0o666)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class CheckpointFiles(TorchCheckpointIO):
    """Writes Lightning's checkpoints so that a kill at any moment leaves one that can be read.

    Lightning's own writes to the system's temporary folder first. Where that is another file
    system, the last step copies over the only good checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Replaces the file."""
        with replace_file(Path(path)) as file:
            torch.save(checkpoint, file)


def read_steps(checkpoint: Path) -> int:
    """The number of steps that a checkpoint was saved after; ValueError if it is damaged."""
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])
    except (RuntimeError, EOFError, KeyError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{checkpoint} is damaged or not a checkpoint: {reason}") from error
