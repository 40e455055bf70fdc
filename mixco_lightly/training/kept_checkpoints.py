"""Keeps checkpoints beside the last one, to study how a run trained."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint


class KeepCheckpoints(Checkpoint):
    """Saves a checkpoint every few epochs and never removes it.

    The trainer's plugin writes it, as it writes the last checkpoint. Unlike a second
    ModelCheckpoint it has no state, so a run may be resumed with another number of epochs.

    Args:
        folder: Folder of the checkpoints; ``epoch-0010.ckpt`` is the one after ten epochs.
        every_n_epochs: Epochs between two checkpoints.
    """

    def __init__(self, folder: Path, every_n_epochs: int) -> None:
        self._folder = folder
        self._every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves a checkpoint, in all processes together."""
        epochs = trainer.current_epoch + 1
        if epochs % self._every_n_epochs == 0:
            trainer.save_checkpoint(self._folder / f"epoch-{epochs:04}.ckpt")


def find_kept(folder: Path) -> dict[int, Path]:
    """Returns the kept checkpoints in a folder by number of epochs, in rising order."""
    paths = {
        int(number): path
        for path in folder.glob("epoch-*.ckpt")
        if (number := path.stem.removeprefix("epoch-")).isdigit()
    }
    return dict(sorted(paths.items()))
