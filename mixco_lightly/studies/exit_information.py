"""Mutual information of a SelfCon run's exits over its checkpoints: what evaluate.py calls.

Each sub-network's features and the backbone's are a pair for each image; their mutual information
is estimated by three lower bounds, and the accuracy of each exit by a linear classifier, at every
checkpoint that the run has kept. SelfCon's claim is that its loss raises both.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from mixco_lightly import MultiExitBackbone, estimate_mutual_information
from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.evaluation.exit_probe import exit_probe, select_exit
from mixco_lightly.evaluation.parts import StackedExits, extract_datasets
from mixco_lightly.evaluation.records import hash_weights, package_versions
from mixco_lightly.files import replace_file
from mixco_lightly.training.kept_checkpoints import find_kept
from mixco_lightly.training.metrics import read_metrics
from mixco_lightly.training.run_folder import checkpoint_path, read_steps

FORMAT = "mixco-lightly mutual information 1"
NAME = "mutual_information"  # of the files, before .json, .md and .png
ESTIMATORS = {"infonce": "InfoNCE", "nwj": "NWJ", "mine": "MINE"}

Row = dict[str, Any]


@dataclass
class Checkpoints:
    """The checkpoints of a run whose network has several exits.

    Attributes:
        run: The run's folder.
        network: The network, with the weights of whichever checkpoint was loaded last.
        paths: The checkpoints by their number of epochs, rising.
    """

    run: Path
    network: MultiExitBackbone
    paths: dict[int, Path]

    def load(self, epochs: int) -> None:
        """Gives the network the weights of a checkpoint; ValueError if they are not its own."""
        path = self.paths[epochs]
        states = load_checkpoint(path)["state_dict"]
        prefix = "network."
        own = {
            name.removeprefix(prefix): tensor
            for name, tensor in states.items()
            if name.startswith(prefix)
        }
        try:
            self.network.load_state_dict(own)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} is not of the run in {self.run}: {reason}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content; ValueError if it is damaged."""
    read_steps(path)
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def open_checkpoints(run: Path, training: Mapping[str, Any], backbone: Backbone) -> Checkpoints:
    """Finds a run's checkpoints.

    Args:
        run: The run's folder.
        training: The options that it was trained with.
        backbone: Its backbone as it was exported; it is copied.

    Raises:
        ValueError: If the run has no sub-networks or has kept no checkpoints, or if one of them is
            damaged or of another network.
    """
    if not training.get("exits"):
        raise ValueError(
            f"--protocol mutual-information is of the sub-networks of a SelfCon run, and {run} "
            f"has none (method {training.get('method', 'unknown')})."
        )
    last = checkpoint_path(run)
    paths = find_kept(last.parent)
    if not paths:
        raise ValueError(
            f"{last.parent} has no checkpoints of several epochs: train the run with "
            "--keep_every_n_epochs N."
        )
    if last.is_file():
        epochs = int(load_checkpoint(last)["epoch"]) + 1  # Lightning counts from 0
        paths.setdefault(epochs, last)
    network = MultiExitBackbone.from_backbone(
        copy.deepcopy(backbone), training["exits"], training["subnetwork"]
    )
    checkpoints = Checkpoints(run, network, dict(sorted(paths.items())))
    for epochs in checkpoints.paths:  # a damaged one is found before hours of measuring
        checkpoints.load(epochs)
    return checkpoints


def read_losses(run: Path) -> dict[int, float]:
    """Mean of the losses that were logged in each epoch, by the number of epochs at its end."""
    losses: dict[int, list[float]] = {}
    for row in read_metrics(run / "metrics.csv"):
        if row.get("loss"):
            losses.setdefault(int(row["epoch"]) + 1, []).append(float(row["loss"]))
    return {epochs: statistics.fmean(values) for epochs, values in losses.items()}


def measure_checkpoints(
    checkpoints: Checkpoints,
    datasets: Sequence[Any],
    folder: Path,
    settings: Mapping[str, Any],
    *,
    overwrite: bool,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> list[Row]:
    """Measures every checkpoint that is not measured yet, and writes all to a folder after each.

    Args:
        checkpoints: Of one run.
        datasets: Training and test images.
        folder: Where mutual_information.json, .md and .png are written.
        settings: What decides the figures beside the weights: dataset, precision, the critics'
            steps, the probes' learning_rates, seed.
        overwrite: Whether figures of other settings or weights may be replaced.
        batch_size: Images in a batch of the feature extraction.
        num_workers: Processes that load images.
        device: Where to compute.

    Returns:
        A row for each checkpoint.

    Raises:
        ValueError: If there are figures of other settings or weights and not overwrite, or if a
            checkpoint is damaged.
    """
    network = checkpoints.network
    losses = read_losses(checkpoints.run)
    rows: dict[int, Row] = {}
    if not overwrite:
        rows = {row["epochs"]: row for row in read_rows(folder, settings)}
    terminal = Console().is_terminal
    count = len(checkpoints.paths) * (2 + len(network.exits) * len(ESTIMATORS))
    folder.mkdir(parents=True, exist_ok=True)
    with Progress(disable=not terminal) as progress:
        task = progress.add_task("", total=count)

        def advance(epochs: int, what: str) -> None:
            progress.update(task, description=f"epoch {epochs}, {what}", refresh=True)
            progress.advance(task)

        for epochs, path in checkpoints.paths.items():
            checkpoints.load(epochs)
            sha256 = hash_weights(network.state_dict())
            if epochs in rows:
                if rows[epochs]["weights_sha256"] != sha256:
                    raise ValueError(
                        f"{folder / NAME}.json has figures of other weights after {epochs} epochs: "
                        "add --overwrite to replace such results, or choose another --output_dir."
                    )
                progress.advance(task, 2 + len(network.exits) * len(ESTIMATORS))
                continue
            advance(epochs, "features")
            train, test = extract_datasets(
                StackedExits(network),
                datasets,
                batch_size=batch_size,
                num_workers=num_workers,
                device=device,
                precision=settings["precision"],
            )
            last = select_exit(train, -1).features
            information = []
            for index, stage in enumerate(network.exits):
                x = select_exit(train, index).features
                for estimator in ESTIMATORS:
                    advance(epochs, f"{ESTIMATORS[estimator]} of stage {stage}")
                    estimate = estimate_mutual_information(
                        x,
                        last,
                        estimator,
                        steps=settings["steps"],
                        seed=settings["seed"],
                        device=device,
                    )
                    figures = {
                        name: value if math.isfinite(value) else None
                        for name, value in estimate._asdict().items()
                    }
                    information.append({"stage": stage, "estimator": estimator, **figures})
            advance(epochs, "linear probes")
            results = exit_probe(
                train,
                test,
                learning_rate=settings["learning_rates"],
                seed=settings["seed"],
                device=device,
            )
            names = [*(f"stage {stage}" for stage in network.exits), "backbone", "ensemble"]
            rows[epochs] = {
                "epochs": epochs,
                "checkpoint": str(path.relative_to(checkpoints.run)),
                "weights_sha256": sha256,
                "loss": losses.get(epochs),
                "information": information,
                "top1": {name: x.top1 for name, x in zip(names, results, strict=True)},
                "versions": package_versions(),
            }
            rows = dict(sorted(rows.items()))
            write_rows(folder, checkpoints.run, list(rows.values()), settings, losses)
            progress.console.print(format_line(rows[epochs]), highlight=False, soft_wrap=True)
    # Anew even if nothing was measured: the run may have gone on since.
    write_rows(folder, checkpoints.run, list(rows.values()), settings, losses)
    return list(rows.values())


def read_rows(folder: Path, settings: Mapping[str, Any]) -> list[Row]:
    """The rows that a folder has; ValueError if they are of other settings."""
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
    """Writes the three files; each is whole at any time."""
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
    """One line for people who wait."""
    stages = {figures["stage"]: "" for figures in row["information"]}
    for figures in row["information"]:
        name = ESTIMATORS[figures["estimator"]]
        stages[figures["stage"]] += f"  {name} {format_nats(figures['nats'])}"
    information = "".join(f"  stage {stage}:{text}" for stage, text in stages.items())
    accuracy = "  ".join(f"{name} {top1:.2f} %" for name, top1 in row["top1"].items())
    return f"epoch {row['epochs']}{information}  top-1: {accuracy}"


def format_nats(nats: float | None) -> str:
    """Two decimals; a bound of minus infinity says nothing."""
    return "-" if nats is None else f"{nats:.2f}"


def iterate_cells(rows: Sequence[Row]) -> Iterator[list[str]]:
    """The lines of the table: one for each checkpoint and sub-network."""
    for row in rows:
        for stage in dict.fromkeys(figures["stage"] for figures in row["information"]):
            nats = {
                figures["estimator"]: format_nats(figures["nats"])
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


COLUMNS = (
    *("epochs", "loss", "exit after stage"),
    *(f"{name}, nats" for name in ESTIMATORS.values()),
    *("exit, top-1 %", "backbone, top-1 %", "ensemble, top-1 %"),
)


def format_markdown(run: str, rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    """The figures of all checkpoints as a Markdown table."""
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


def draw(run: str, rows: Sequence[Row], losses: Mapping[int, float], file: Any) -> None:
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
