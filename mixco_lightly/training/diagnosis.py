"""Warns about a run whose loss is at chance or whose backbone is below its initialisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from mixco_lightly.evaluation.probe_result import ProbeResult
from mixco_lightly.evaluation.protocols import PROTOCOL_LABELS
from mixco_lightly.training.metrics import read_metrics

# A network that cannot distinguish images is within 1% of the chance level. One that learns is
# further below it after its first epoch: on the digits by 4% (MoCo) and 19% (SimCLR).
_MARGIN = 0.02


def describe_chance(negatives: int) -> str:
    """Formats the loss of a query that is equally similar to its positive and all negatives."""
    return f"ln(1 + {negatives}) = {math.log1p(negatives):.2f}"


def is_at_chance(contrast: float, negatives: int) -> bool:
    """Returns whether the contrast term is not clearly below its chance level."""
    return contrast > (1 - _MARGIN) * math.log1p(negatives)


def find_chance(run: Path, epoch: int, epochs: int, negatives: int) -> str:
    """Returns a line if the contrast term is at chance after an epoch (from 1), else ""."""
    rows = [row for row in read_metrics(run / "metrics.csv") if row.get("contrast")]
    values = [float(row["contrast"]) for row in rows if int(row["epoch"]) == epoch - 1]
    if not values or not is_at_chance(mean := sum(values) / len(values), negatives):
        return ""
    return (
        f"After {epoch} of {epochs} epochs the contrast term is {mean:.2f}, still at its chance "
        f"level {describe_chance(negatives)}: the network does not distinguish the images. Try "
        "another --learning_rate, a lower --temperature, or --warmup_epochs 1."
    )


def find_below_random(
    trained: Mapping[Any, ProbeResult], initial: Mapping[Any, ProbeResult]
) -> str:
    """Returns a line if training made a backbone worse by any protocol, else "".

    Args:
        trained: Results of the trained backbone, by protocol.
        initial: Results of the backbone at initialisation.
    """
    below = [
        f"{PROTOCOL_LABELS.get(name, name)} {trained[name].top1:.2f} % against {first.top1:.2f} %"
        for name, first in initial.items()
        if name in trained and trained[name].top1 < first.top1
    ]
    if not below:
        return ""
    return f"The trained backbone is below its random initialisation: {'; '.join(below)}."


class WarnAtChance(Callback):
    """Warns after a tenth of the epochs if the contrast term is still at chance.

    Args:
        run: The run's folder.
        negatives: Number of negatives of a query.
    """

    def __init__(self, run: Path, negatives: int) -> None:
        self._run, self._negatives = run, negatives

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the line, except in the last epoch, after which the run prints it itself."""
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        if trainer.is_global_zero and epoch == math.ceil(epochs / 10) < epochs:
            line = find_chance(self._run, epoch, epochs, self._negatives)
            if line:
                print(line, flush=True)
