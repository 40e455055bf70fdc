"""Shows a run while it trains: a bar or lines, images per second, time left."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, RichProgressBar

from mixco_lightly.loss.key_queue import TOLERATED_STEPS_IN_FLOAT16
from mixco_lightly.training.metrics import latest_metrics
from mixco_lightly.training.processes import OtherProcessError

SHOWN_METRICS = ("loss", "contrast", "mix", "cross_entropy", "knn_top1", "online_top1")


class Speed(Callback):
    """Counts images, seconds and memory of the training epochs, and survives a resume.

    Attributes:
        images: Images of all finished epochs and all processes; a pair of views counts once.
        seconds: Seconds of all finished epochs.
        peak_megabytes: Most memory so far in 10^6 bytes, summed over all processes: of tensors on a
            GPU, of the whole process on a CPU.
    """

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self.peak_megabytes = 0.0
        self._epoch_start = 0.0
        self._epoch_images = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._epoch_start, self._epoch_images = time.monotonic(), 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts the batch."""
        self._epoch_images += len(batch[0][0]) * trainer.world_size

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock and reads the peak memory."""
        self.seconds += time.monotonic() - self._epoch_start
        self.images += self._epoch_images
        device = trainer.strategy.root_device
        peak = torch.tensor(peak_bytes(device) / 1e6, device=device)
        total = float(trainer.strategy.reduce(peak, reduce_op="sum"))
        self.peak_megabytes = max(self.peak_megabytes, total)

    def epoch_rate(self) -> float:
        """Returns the images per second so far in this epoch."""
        return self._epoch_images / max(time.monotonic() - self._epoch_start, 1e-9)

    def left(self, trainer: pl.Trainer) -> str:
        """Returns the time left at the rate of this epoch, as h:mm:ss."""
        rate = self.epoch_rate()
        if not rate:
            return "?"
        done = max(trainer.fit_loop.epoch_loop.batch_idx + 1, 1)
        epochs = (trainer.max_epochs or 1) - trainer.current_epoch
        batches = trainer.num_training_batches * epochs - done
        if trainer.max_steps != -1:
            steps = trainer.max_steps - trainer.global_step
            batches = min(batches, steps * trainer.accumulate_grad_batches)
        return str(timedelta(seconds=round(batches * self._epoch_images / done / rate)))

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums and the peak."""
        return {
            "images": self.images,
            "seconds": self.seconds,
            "peak_megabytes": self.peak_megabytes,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the sums and the peak."""
        self.images, self.seconds = state_dict["images"], state_dict["seconds"]
        self.peak_megabytes = state_dict["peak_megabytes"]


def peak_bytes(device: torch.device) -> int:
    """Returns this process's peak memory in bytes: of tensors on a GPU, of everything on a CPU.

    0 on Windows, where Python's standard library cannot read it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def advise_after_divergence(trainer: pl.Trainer) -> str:
    """Returns what to try after a loss that is not finite, and where the last checkpoint is."""
    kept = (
        "checkpoints/last.ckpt is from the last whole epoch."
        if trainer.current_epoch
        else "There is no checkpoint, because the first epoch has not ended."
    )
    return f"A lower --learning_rate or a higher --mix_temperature may help. {kept}"


class NonFiniteLossError(ArithmeticError):
    """The loss is NaN or infinite."""


class StopOnNonFiniteLoss(Callback):
    """Stops a run that has diverged, before a checkpoint of it is written.

    Checks the loss when it is logged and at the end of an epoch, so that a GPU does not stall in
    every step. The processes exchange their losses in these steps and stop together, even if the
    loss of only one is not finite.

    With a GradScaler (16-mixed) it stops after more than 20 such steps in a row. The scaler skips
    the weight update of a step that overflows, but BatchNorm's running statistics have already
    absorbed the batch. Statistics that are not finite are reset to their values at the last check.

    Args:
        every_n_steps: How often the loss is logged.
    """

    def __init__(self, every_n_steps: int) -> None:
        self._every_n_steps = every_n_steps
        self._steps_in_a_row: torch.Tensor | int = 0  # on the loss's device
        self._statistics: dict[str, torch.Tensor] = {}  # at the last check

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the first statistics."""
        if has_scaler(trainer):
            self._mend_statistics(pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts the steps with a loss that is not finite, and checks the count.

        Raises:
            NonFiniteLossError: In the first process, if the run has diverged.
            OtherProcessError: In the other processes.
        """
        loss = outputs["loss"]
        self._steps_in_a_row = torch.where(loss.isfinite(), 0, self._steps_in_a_row + 1)
        is_last = (
            batch_idx + 1 == trainer.num_training_batches
            or trainer.global_step == trainer.max_steps
        )
        if not is_last and (batch_idx + 1) % self._every_n_steps:
            return
        own = torch.stack([loss.float(), self._steps_in_a_row.float()])
        losses = trainer.strategy.all_gather(own).reshape(-1, 2).tolist()
        tolerated = TOLERATED_STEPS_IN_FLOAT16 if has_scaler(trainer) else 0
        for rank, (value, steps) in enumerate(losses):
            if steps > tolerated:
                if trainer.global_rank != 0:
                    raise OtherProcessError(f"The loss of process {rank} is {value}.")
                raise NonFiniteLossError(
                    f"The loss is {value} at step {trainer.global_step} (process {rank}). "
                    f"{advise_after_divergence(trainer)}"
                )
        if has_scaler(trainer):
            self._mend_statistics(pl_module)

    @torch.no_grad()
    def _mend_statistics(self, module: pl.LightningModule) -> None:
        for name, buffer in module.named_buffers():
            if name.endswith((".running_mean", ".running_var")):
                last = self._statistics.get(name, buffer)
                buffer.copy_(torch.where(buffer.isfinite(), buffer, last))
                self._statistics[name] = buffer.clone()


def has_scaler(trainer: pl.Trainer) -> bool:
    """Returns whether a GradScaler skips the steps with gradients that are not finite."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def shown_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """Returns the logged values to show, without waiting for a device.

    ``knn_top1`` and ``online_top1`` are not measured in every epoch; the name of an older value
    includes its epoch.
    """
    latest = latest_metrics(trainer)
    shown = {}
    for name in SHOWN_METRICS:
        if name in latest:
            value, epoch = latest[name]
            is_old = name in ("knn_top1", "online_top1") and epoch != trainer.current_epoch
            shown[f"{name} of epoch {epoch + 1}" if is_old else name] = value
    return shown


class ProgressBar(RichProgressBar):
    """Adds images per second and the time left to Lightning's bar."""

    def __init__(self, speed: Speed, refresh_rate: int) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._speed = speed

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Adds both to the losses that were logged last."""
        return {
            **super().get_metrics(trainer, pl_module),
            **{name: f"{value:.3f}" for name, value in shown_metrics(trainer).items()},
            "images/s": f"{self._speed.epoch_rate():,.0f}",
            "run left": self._speed.left(trainer),
        }


class EpochLines(Callback):
    """Prints one line an epoch, for output that is no terminal."""

    def __init__(self, speed: Speed) -> None:
        self._speed = speed

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the line."""
        if trainer.is_global_zero:
            shown = shown_metrics(trainer)
            losses = [f"{name} {shown[name]:.3f}" for name in SHOWN_METRICS if name in shown]
            rate = f"{self._speed.epoch_rate():,.0f} images/s"
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            print(
                "  ".join([epoch, *losses, rate, f"{self._speed.left(trainer)} left"]), flush=True
            )
