"""Measures the mutual information of a SelfCon run's exits, at each checkpoint that it kept.

The features of a sub-network and of the backbone are a pair for each image. Three lower bounds
estimate the mutual information of these pairs, and a linear classifier measures the accuracy of
each exit. SelfCon's claim is that its loss raises both.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.backbones.multi_exit import MultiExitBackbone
from mixco_lightly.evaluation.exits import exit_probe, select_exit
from mixco_lightly.evaluation.features import Features
from mixco_lightly.evaluation.mutual_information import estimate_mutual_information
from mixco_lightly.evaluation.parts import StackedExits, extract_datasets
from mixco_lightly.evaluation.records import hash_weights, package_versions
from mixco_lightly.studies.information_report import (
    ESTIMATORS,
    NAME,
    Row,
    format_line,
    read_rows,
    write_rows,
)
from mixco_lightly.training.kept_checkpoints import find_kept
from mixco_lightly.training.metrics import read_metrics
from mixco_lightly.training.run_folder import checkpoint_path, read_steps


@dataclass
class Checkpoints:
    """The checkpoints of a run whose network has several exits.

    Args:
        run: The run's folder.
        network: The network; it has the weights of the checkpoint that was loaded last.
        paths: The checkpoints by their number of epochs, in rising order.
    """

    run: Path
    network: MultiExitBackbone
    paths: dict[int, Path]

    def load(self, epochs: int) -> None:
        """Loads the weights of a checkpoint into the network.

        Raises:
            ValueError: If the checkpoint is damaged or has the weights of another network.
        """
        path = self.paths[epochs]
        states = _load_checkpoint(path)["state_dict"]
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


def open_checkpoints(run: Path, training: Mapping[str, Any], backbone: Backbone) -> Checkpoints:
    """Finds a run's checkpoints, and checks that each can be loaded.

    Args:
        run: The run's folder.
        training: The options that it was trained with.
        backbone: Its exported backbone; it is copied.

    Raises:
        ValueError: If the run has no sub-networks or has kept no checkpoints, or if a checkpoint is
            damaged or has the weights of another network.
    """
    if not training.get("exits"):
        raise ValueError(
            f"--protocol mutual-information measures the sub-networks of a SelfCon run, and {run} "
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
        epochs = int(_load_checkpoint(last)["epoch"]) + 1  # Lightning counts from 0
        paths.setdefault(epochs, last)
    network = MultiExitBackbone.from_backbone(
        copy.deepcopy(backbone), training["exits"], training["subnetwork"]
    )
    checkpoints = Checkpoints(run, network, dict(sorted(paths.items())))
    for epochs in checkpoints.paths:  # finds a damaged one before hours of measuring
        checkpoints.load(epochs)
    return checkpoints


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
    """Measures every checkpoint that is not measured yet, and writes the files after each.

    Args:
        checkpoints: The checkpoints of one run.
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
        ValueError: If the folder has figures of other settings or weights and ``overwrite`` is
            False, or if a checkpoint is damaged.
    """
    network, run = checkpoints.network, checkpoints.run
    losses = _read_losses(run)
    rows: dict[int, Row] = {}
    if not overwrite:
        rows = {row["epochs"]: row for row in read_rows(folder, settings)}
    steps = 2 + len(network.exits) * len(ESTIMATORS)
    folder.mkdir(parents=True, exist_ok=True)
    hidden = not Console().is_terminal
    # quiet: rich 13.0 prints an empty line even for Progress(disable=True).
    with Progress(console=Console(quiet=hidden), disable=hidden) as progress:
        task = progress.add_task("", total=len(checkpoints.paths) * steps)

        def show(epochs: int, what: str) -> None:
            progress.update(task, description=f"epoch {epochs}, {what}", refresh=True)
            progress.advance(task)

        for epochs, path in checkpoints.paths.items():
            advance = partial(show, epochs)
            checkpoints.load(epochs)
            sha256 = hash_weights(network.state_dict())
            if epochs in rows:
                if rows[epochs]["weights_sha256"] != sha256:
                    raise ValueError(
                        f"{folder / NAME}.json has figures of other weights after {epochs} epochs: "
                        "add --overwrite to replace such results, or choose another --output_dir."
                    )
                progress.advance(task, steps)
                continue
            advance("features")
            train, test = extract_datasets(
                StackedExits(network),
                datasets,
                batch_size=batch_size,
                num_workers=num_workers,
                device=device,
                precision=settings["precision"],
            )
            rows[epochs] = {
                "epochs": epochs,
                "checkpoint": str(path.relative_to(run)),
                "weights_sha256": sha256,
                "loss": losses.get(epochs),
                "information": _estimate(train, network.exits, settings, device, advance),
                "top1": _probe(train, test, network.exits, settings, device, advance),
                "versions": package_versions(),
            }
            rows = dict(sorted(rows.items()))
            write_rows(folder, run, list(rows.values()), settings, losses)
            progress.console.print(format_line(rows[epochs]), highlight=False, soft_wrap=True)
    # Rewrite even if nothing new was measured: the run may have trained on since.
    write_rows(folder, run, list(rows.values()), settings, losses)
    return list(rows.values())


def _estimate(
    train: Features,
    exits: Sequence[int],
    settings: Mapping[str, Any],
    device: torch.device,
    advance: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Estimates the information of each sub-network's features and the backbone's."""
    last = select_exit(train, -1).features
    information = []
    for index, stage in enumerate(exits):
        x = select_exit(train, index).features
        for estimator, label in ESTIMATORS.items():
            advance(f"{label} of stage {stage}")
            estimate = estimate_mutual_information(
                x,
                last,
                estimator,
                steps=settings["steps"],
                seed=settings["seed"],
                device=device,
            )
            # JSON has no infinity.
            figures = {
                name: value if math.isfinite(value) else None
                for name, value in estimate._asdict().items()
            }
            information.append({"stage": stage, "estimator": estimator, **figures})
    return information


def _probe(
    train: Features,
    test: Features,
    exits: Sequence[int],
    settings: Mapping[str, Any],
    device: torch.device,
    advance: Callable[[str], None],
) -> dict[str, float]:
    """Measures the accuracy of each exit and of their ensemble, by name."""
    advance("linear probes")
    results = exit_probe(
        train,
        test,
        learning_rate=settings["learning_rates"],
        seed=settings["seed"],
        device=device,
    )
    names = [*(f"stage {stage}" for stage in exits), "backbone", "ensemble"]
    return {name: result.top1 for name, result in zip(names, results, strict=True)}


def _load_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint; a damaged one is a ValueError."""
    read_steps(path)
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def _read_losses(run: Path) -> dict[int, float]:
    """Computes the mean of the losses logged in each epoch, by the number of epochs at its end."""
    losses: dict[int, list[float]] = {}
    for row in read_metrics(run / "metrics.csv"):
        if row.get("loss"):
            losses.setdefault(int(row["epoch"]) + 1, []).append(float(row["loss"]))
    return {epochs: statistics.fmean(values) for epochs, values in losses.items()}
