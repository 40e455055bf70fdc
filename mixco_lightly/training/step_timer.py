"""Times the first steps of a run, and ends it."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


class StepTimer(Callback):
    """Measures the seconds of a step once the device is warm, and then stops the training.

    It waits for the device only where it reads the clock.

    Args:
        warm_up: Steps before the clock starts. If the run has no others, they are timed.
        timed: Steps that are timed.
    """

    def __init__(self, warm_up: int, timed: int) -> None:
        self._warm_up = warm_up
        self._timed = timed
        self._steps = 0
        self._first = 0
        self._start = 0.0
        self._end = 0.0

    @property
    def seconds_per_step(self) -> float:
        """Seconds from one step to the next."""
        return (self._end - self._start) / (self._steps - self._first)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts the clock, again after the warm-up."""
        if self._steps in (0, self._warm_up):
            self._first, self._start = self._steps, _now(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts the step, and stops the training after the last timed one."""
        self._steps += 1
        if self._steps == self._warm_up + self._timed:
            self._end = _now(trainer)
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock of a shorter run."""
        if self._steps < self._warm_up + self._timed:
            self._end = _now(trainer)


def _now(trainer: pl.Trainer) -> float:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.perf_counter()
