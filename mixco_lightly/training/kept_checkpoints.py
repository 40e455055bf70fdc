"""Checkpoints that a run keeps beside its last one, to look at how it trained."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint


class KeepCheckpoints(Checkpoint):
    """Saves a checkpoint every few epochs and never removes it.

    It is written as the last checkpoint is, by the trainer's own plugin. It has no state, unlike
    a second ModelCheckpoint, so that a run may be resumed with another number of epochs.

    Args:
        folder: Where they are kept, as ``epoch-0010.ckpt`` after ten epochs.
        every_n_epochs: How often.
    """

    def __init__(self, folder: Path, every_n_epochs: int) -> None:
        self._folder = folder
        self._every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves it, in all processes together."""
        epochs = trainer.current_epoch + 1
        if epochs % self._every_n_epochs == 0:
            trainer.save_checkpoint(self._folder / f"epoch-{epochs:04}.ckpt")


def find_kept(folder: Path) -> dict[int, Path]:
    """The kept checkpoints in a folder by their number of epochs, rising."""
    paths = {
        int(number): path
        for path in folder.glob("epoch-*.ckpt")
        if (number := path.stem.removeprefix("epoch-")).isdigit()
    }
    return dict(sorted(paths.items()))
