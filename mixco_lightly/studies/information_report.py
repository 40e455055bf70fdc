"""Reads and writes the figures of a SelfCon run's exits: record, table and plot."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mixco_lightly.files import replace_file

FORMAT = "mixco-lightly mutual information 1"
NAME = "mutual_information"  # of the files, before .json, .md and .png
ESTIMATORS = {"infonce": "InfoNCE", "nwj": "NWJ", "mine": "MINE"}
COLUMNS = (
    "epochs",
    "loss",
    "exit after stage",
    *(f"{name}, nats" for name in ESTIMATORS.values()),
    "exit, top-1 %",
    "backbone, top-1 %",
    "ensemble, top-1 %",
)

Row = dict[str, Any]  # the figures of one checkpoint


def read_rows(folder: Path, settings: Mapping[str, Any]) -> list[Row]:
    """Reads the rows in a folder's mutual_information.json; none if there is no such file.

    Raises:
        ValueError: If they are of other settings, or if the file is not of this version.
    """
    path = folder / f"{NAME}.json"
    if not path.is_file():
        return []
    try:
        report = json.loads(path.read_text())
        if report["format"] != FORMAT:
            raise ValueError(f"its format is {report['format']!r}")
        rows: list[Row] = report["checkpoints"]
        before: dict[str, Any] = report["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not of this version ({error!r}): move it away, or choose another "
            "--output_dir."
        ) from error
    for name in before.keys() | settings.keys():
        if before.get(name) != settings.get(name):
            raise ValueError(
                f"{path} has figures with {name} {before.get(name)}, not {settings.get(name)}: "
                "add --overwrite to replace such results, or choose another --output_dir."
            )
    return rows


def write_rows(
    folder: Path,
    run: Path,
    rows: Sequence[Row],
    settings: Mapping[str, Any],
    losses: Mapping[int, float],
) -> None:
    """Writes record, table and plot, each whole or not at all.

    Args:
        folder: Where to write.
        run: The run's folder.
        rows: A row for each checkpoint.
        settings: What decided the figures beside the weights.
        losses: Mean loss of each epoch, by the number of epochs at its end.
    """
    report = {"format": FORMAT, "run": str(run), "settings": settings, "checkpoints": rows}
    texts = {
        "json": json.dumps(report, indent=2, allow_nan=False) + "\n",
        "md": format_markdown(str(run), rows, settings),
    }
    for ending, text in texts.items():
        with replace_file(folder / f"{NAME}.{ending}") as file:
            file.write(text.encode())
    with replace_file(folder / f"{NAME}.png") as file:
        draw(str(run), rows, losses, file)


def format_line(row: Row) -> str:
    """Returns a checkpoint's figures in one line."""
    stages = {figures["stage"]: "" for figures in row["information"]}
    for figures in row["information"]:
        name = ESTIMATORS[figures["estimator"]]
        stages[figures["stage"]] += f"  {name} {_format_nats(figures['nats'])}"
    information = "".join(f"  stage {stage}:{text}" for stage, text in stages.items())
    accuracy = "  ".join(f"{name} {top1:.2f} %" for name, top1 in row["top1"].items())
    return f"epoch {row['epochs']}{information}  top-1: {accuracy}"


def iterate_cells(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yields the lines of the table: one for each checkpoint and sub-network."""
    for row in rows:
        for stage in dict.fromkeys(figures["stage"] for figures in row["information"]):
            nats = {
                figures["estimator"]: _format_nats(figures["nats"])
                for figures in row["information"]
                if figures["stage"] == stage
            }
            top1 = (row["top1"][name] for name in (f"stage {stage}", "backbone", "ensemble"))
            yield [
                str(row["epochs"]),
                "-" if row["loss"] is None else f"{row['loss']:.3f}",
                str(stage),
                *(nats[estimator] for estimator in ESTIMATORS),
                *(f"{value:.2f}" for value in top1),
            ]


def format_markdown(run: str, rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    """Returns the figures of all checkpoints as a Markdown table."""
    limit = rows[0]["information"][0]["upper_limit"]
    lines = [
        f"# Mutual information of the exits of {run}",
        "",
        "Lower bounds of the mutual information, in nats, of each sub-network's features and the",
        f"backbone's, on training images of {settings['dataset']} without augmentation, a fifth",
        "of which neither trained nor chose the critic. InfoNCE cannot exceed the logarithm of",
        f"their number, {limit:.2f}. NWJ and MINE have no limit, but vary where there are many",
        "nats. Accuracies are those of linear classifiers on the frozen features, on all test",
        "images; the ensemble is the mean of their logits. The loss is the mean of those logged in",
        f"the epoch. Settings, versions and the bounds on training pairs are in `{NAME}.json`.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---:|" * len(COLUMNS),
        *(f"| {' | '.join(cells)} |" for cells in iterate_cells(rows)),
    ]
    return "\n".join(lines) + "\n"


def draw(run: str, rows: Sequence[Row], losses: Mapping[int, float], file: IO[bytes]) -> None:
    """Draws loss, information and accuracy over the epochs, one below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 10), layout="constrained")
    figure.suptitle(run)
    loss, information, accuracy = figure.subplots(3, sharex=True)
    loss.plot(*zip(*sorted(losses.items()), strict=True), marker="." if len(losses) < 20 else "")
    loss.set(title="loss", ylabel="nats")
    epochs = [row["epochs"] for row in rows]
    keys = [(figures["stage"], figures["estimator"]) for figures in rows[0]["information"]]
    for index, (stage, estimator) in enumerate(keys):
        figures = [row["information"][index] for row in rows]
        nats = [math.nan if x["nats"] is None else x["nats"] for x in figures]
        label = f"{ESTIMATORS[estimator]}, exit after stage {stage}"
        (line,) = information.plot(epochs, nats, marker="o", label=label)
        if figures[0]["upper_limit"] is not None:
            information.axhline(
                figures[0]["upper_limit"], color=line.get_color(), linestyle=":", linewidth=1
            )
    information.set(
        title="mutual information with the backbone's features (dotted: InfoNCE's limit)",
        ylabel="lower bound, nats",
    )
    for name in rows[0]["top1"]:
        accuracy.plot(epochs, [row["top1"][name] for row in rows], marker="o", label=name)
    accuracy.set(title="linear probe on the test images", xlabel="epoch", ylabel="top-1 %")
    for axes in (loss, information, accuracy):
        axes.grid(alpha=0.3)
        if axes is not loss:
            axes.legend(fontsize=8)
    figure.savefig(file, dpi=110, format="png")


def _format_nats(nats: float | None) -> str:
    """Returns two decimals; None is a bound of minus infinity, which tells nothing."""
    return "-" if nats is None else f"{nats:.2f}"
