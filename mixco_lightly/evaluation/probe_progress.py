"""How protocols that train on images show their progress."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar
from rich.console import Console


def create_progress(title: str) -> Callback:
    """Creates Lightning's progress bar, or prints a few lines if the output is not a terminal.

    Args:
        title: What is trained.

    Returns:
        A callback for Lightning's trainer.
    """
    if not Console().is_terminal:
        return TenLines(title)
    print(title)
    return RichProgressBar()


class TenLines(Callback):
    """Prints ten lines during a training, each with the accuracy on the test images.

    Args:
        title: Start of each line.
    """

    def __init__(self, title: str) -> None:
        self._title = title

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints a line after each tenth of the epochs."""
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        if epoch * 10 // epochs > (epoch - 1) * 10 // epochs:
            top1 = 100 * trainer.callback_metrics["val_top1"]
            print(f"{self._title}: epoch {epoch}/{epochs}, top-1 {top1:.2f} %", flush=True)
