"""Records a run while it trains: metrics.csv and curves.png."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from mixco_lightly.files import name_write_errors, replace_file
from mixco_lightly.models.step_log import is_logged_step

# What curves.png shows: title, unit and names of the metrics; missing metrics are skipped.
_CURVES = [
    ("losses", "nats", ("loss", "contrast", "mix", "cross_entropy")),
    ("cosine similarities", "mean", ("positive_similarity", "negative_similarity")),
    ("kNN of held-out labels", "top-1 %", ("knn_top1", "online_top1")),
    ("learning rate", "", ("learning_rate",)),
]


class MetricsFile(Logger):
    """A CSV file of metrics that a resumed run continues, whenever the run was killed.

    A row is one line, written at once. A new column, or the cut at the checkpoint, replaces the
    whole file.

    Args:
        path: The file.

    Attributes:
        latest: The last value of each metric and its epoch, for a progress bar.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.latest: dict[str, tuple[float, int]] = {}
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        """Lightning requires it."""
        return ""

    @property
    def version(self) -> str:
        """Lightning requires it."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: they are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes a row."""
        epoch = int(metrics.get("epoch", 0))
        self.latest.update({name: (value, epoch) for name, value in metrics.items()})
        row = {"step": step, **metrics}
        new = sorted(row.keys() - set(self._columns))
        if new:
            rows = read_metrics(self.path)
            self._columns = ["epoch", "step"] if not self._columns else self._columns
            self._columns += [name for name in new if name not in self._columns]
            self._replace([*rows, row])
        else:
            with name_write_errors(self.path), self.path.open("a", newline="") as file:
                file.write(self._lines([row]))

    @rank_zero_only
    def keep_steps(self, finished_steps: int) -> None:
        """Removes the rows after a checkpoint, whose steps will be repeated."""
        rows = [row for row in read_metrics(self.path) if int(row["step"]) < finished_steps]
        self._columns = list(rows[0]) if rows else []
        if rows:
            self._replace(rows)
        else:
            self.path.unlink(missing_ok=True)

    def _replace(self, rows: list[dict[str, Any]]) -> None:
        with replace_file(self.path) as file:
            header = dict(zip(self._columns, self._columns, strict=True))
            file.write(self._lines([header, *rows]).encode())

    def _lines(self, rows: list[dict[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Returns the complete rows of a metrics file; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    return list(csv.DictReader(lines))


def open_metrics(run: Path, finished_steps: int) -> MetricsFile:
    """Opens the metrics file of a run, without the steps that will be repeated.

    Args:
        run: The run's folder.
        finished_steps: Steps of the checkpoint that the run resumes from; 0 for a new run.
    """
    metrics = MetricsFile(run / "metrics.csv")
    metrics.keep_steps(finished_steps)
    return metrics


def latest_metrics(trainer: pl.Trainer) -> dict[str, tuple[float, int]]:
    """Returns the last value of each metric and its epoch, without waiting for a device."""
    files = [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]
    return files[0].latest if files else {}


class LogLearningRate(Callback):
    """Logs the learning rate of a step together with its losses."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Logs it if this step is logged."""
        if is_logged_step(pl_module):
            pl_module.log("learning_rate", trainer.optimizers[0].param_groups[0]["lr"])


class Curves(NamedTuple):
    """Curves that are drawn together.

    Attributes:
        title: What they are.
        unit: The unit of their values.
        points: Steps and values of each metric.
    """

    title: str
    unit: str
    points: dict[str, list[tuple[int, float]]]


def read_curves(run: Path) -> list[Curves]:
    """Reads what metrics.csv has of the curves that are drawn."""
    rows = read_metrics(run / "metrics.csv")
    groups = [
        Curves(
            title,
            unit,
            {
                name: [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
                for name in names
                if any(row.get(name) for row in rows)
            },
        )
        for title, unit, names in _CURVES
    ]
    return [group for group in groups if group.points]


def draw_curves(run: Path) -> None:
    """Draws metrics.csv over the steps as curves.png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    figure.suptitle(str(run))
    for index, (title, unit, curves) in enumerate(read_curves(run)):
        axes = figure.add_subplot(2, 2, index + 1)
        for name, points in curves.items():
            # A line of a few points is hard to see.
            axes.plot(
                *zip(*points, strict=True), marker="." if len(points) < 20 else "", label=name
            )
        axes.set(title=title, xlabel="step", ylabel=unit)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend()
    with replace_file(run / "curves.png") as file:
        figure.savefig(file, dpi=120, format="png")
