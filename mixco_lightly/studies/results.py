"""Reads what the runs of a study measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixco_lightly.evaluation.records import read_report
from mixco_lightly.machine import available_processors
from mixco_lightly.studies.figures import HELD_OUT_KNN, transfer_heading
from mixco_lightly.studies.plan import Run, Study
from mixco_lightly.studies.report import write_report


def is_finished(run: Run) -> bool:
    """Checks whether a run and its evaluations on further datasets are complete.

    Raises:
        ValueError: If the run in its folder has other options than the study.
    """
    import yaml

    path = run.folder / "config.yaml"
    if not path.is_file():
        return False
    before = yaml.safe_load(path.read_text()) or {}
    for name, value in run.options.items():
        # Data may have moved, a run records what it chose for auto, and selfcon.py records no exits
        # for a method without sub-networks.
        if name == "data_dir" or value == "auto" or (name == "exits" and before.get(name) == []):
            continue
        if before.get(name) != value:
            raise ValueError(
                f"The run in {run.folder} was made with {name} {before.get(name)}, the study says "
                f"{value}: choose another --output_dir, or delete that folder."
            )
    return (run.folder / "summary.json").is_file() and all(
        is_evaluated(run, name) for name in run.transfer
    )


def is_evaluated(run: Run, name: str) -> bool:
    """Checks whether an evaluation of a run on a further dataset is complete."""
    # An interrupted evaluation leaves some of its protocols.
    measured = {record["protocol"] for record in read_report(run.transfer_folder(name))}
    return measured >= set(run.transfer[name]["protocol"])


def collect(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns options, figures and curve of each finished run."""
    return [
        _read_run(run)
        for run in runs
        # Looked for first: a run that is just starting may have half a config.yaml.
        if (run.folder / "summary.json").is_file() and is_finished(run)
    ]


def write_results(study: Study, runs: Sequence[Run], output_dir: Path, jobs: int) -> None:
    """Writes results.json, results.md and results.png, if a run has finished."""
    rows = collect(runs)
    if not rows:
        return
    results = {
        "question": study.question,
        "base_name": study.base_name,
        "jobs": jobs,
        "processors": available_processors(),
        "planned": len(runs),
        "study": study.content(),
        "runs": rows,
    }
    write_report(results, output_dir)


def _read_run(run: Run) -> dict[str, Any]:
    summary = json.loads((run.folder / "summary.json").read_text())
    trained = json.loads((run.folder / "backbone.json").read_text())["training"]
    images = summary["images_per_second"] * summary["seconds"]
    curve = _read_curve(run.folder / "metrics.csv", summary["epochs"], images)
    return {
        "group": run.group,
        "arm": run.arm,
        "seed": run.options["seed"],
        "recipe": run.recipe,
        "options": {name: value for name, value in run.options.items() if name != "data_dir"},
        "images": round(images),
        "curve": curve,
        **({HELD_OUT_KNN: curve[-1][1]} if curve else {}),
        "resolved": {name: trained[name] for name in ("augment", "precision") if name in trained},
        **summary,
        **_read_transfer(run),
    }


def _read_curve(path: Path, epochs: int, images: float) -> list[list[float]]:
    """Returns images seen and accuracy of each kNN evaluation during training."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("knn_top1")]
    return [
        [round((float(row["epoch"]) + 1) / epochs * images), float(row["knn_top1"])] for row in rows
    ]


def _read_transfer(run: Run) -> dict[str, float]:
    """Returns the figures on the further datasets, by their headings in the table.

    They are accuracies, and the measures of protocols without an accuracy.
    """
    found: dict[str, float] = {}
    for name in run.transfer:
        for record in read_report(run.transfer_folder(name)):
            protocol = record["protocol"]
            if "top1" in record:
                found[transfer_heading(protocol, name)] = record["top1"]
                continue
            for measure, value in record["measures"].items():
                if not measure.endswith(" interval"):  # the study has intervals over seeds
                    found[transfer_heading(protocol, name, measure)] = value
    return found
