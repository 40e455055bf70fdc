"""Opens and measures the exits of SelfCon runs, for a command that evaluates subjects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mixco_lightly.machine as machine
from mixco_lightly.backbones.description import read_config
from mixco_lightly.data.images import LabelledImages
from mixco_lightly.data.transforms import create_test_transform
from mixco_lightly.evaluation.evaluator import with_transform
from mixco_lightly.evaluation.linear_protocols import LEARNING_RATES
from mixco_lightly.evaluation.subjects import Subject
from mixco_lightly.studies.exit_information import (
    Checkpoints,
    measure_checkpoints,
    open_checkpoints,
)
from mixco_lightly.studies.information_report import COLUMNS, Row, iterate_cells
from mixco_lightly.training.command_line import print_table


def open_exits(subjects: Sequence[Subject]) -> list[Checkpoints]:
    """Opens the checkpoints of runs.

    Args:
        subjects: Subjects that are runs; their names are the runs' folders.

    Returns:
        The checkpoints of each run.

    Raises:
        ValueError: If the subjects have several datasets, or as
            :func:`~mixco_lightly.studies.exit_information.open_checkpoints`.
    """
    names = list(dict.fromkeys(subject.source.name for subject in subjects))
    if len({subject.source for subject in subjects}) > 1:
        raise ValueError(
            f"--protocol mutual-information takes one --dataset at a time, not {', '.join(names)}."
        )
    return [
        open_checkpoints(
            Path(subject.name),
            read_config(subject.name).get("training", {}),
            subject.backbone,
        )
        for subject in subjects
    ]


def measure_exits(
    subject: Subject,
    checkpoints: Checkpoints,
    images: Sequence[LabelledImages],
    folder: Path,
    *,
    steps: int,
    overwrite: bool,
    batch_size: int,
    num_workers: int | None,
    seed: int,
    device: torch.device,
    precision: str,
) -> list[Row]:
    """Measures the exits at each checkpoint of a run, and writes the figures.

    Args:
        subject: The run and the dataset.
        checkpoints: The run's checkpoints.
        images: Training and test images; their transforms are ignored.
        folder: Where the figures are written.
        steps: Training steps of each critic.
        overwrite: Whether figures of other settings or weights may be replaced.
        batch_size: Images in a batch of the feature extraction.
        num_workers: Processes that load images. Default: one for each processor, 8 at most.
        seed: Seed of critics and probes.
        device: Where to run.
        precision: Precision of the network.

    Returns:
        A row for each checkpoint.
    """
    transform = create_test_transform(subject.facts, subject.image_size)
    settings = {
        "dataset": subject.source.name,
        "image_size": subject.image_size,
        "precision": precision,
        "steps": steps,
        "learning_rates": list(LEARNING_RATES),
        "seed": seed,
    }
    return measure_checkpoints(
        checkpoints,
        [with_transform(part, transform) for part in images],
        folder,
        settings,
        overwrite=overwrite,
        batch_size=batch_size,
        num_workers=machine.default_num_workers(num_workers),
        device=device,
    )


def report_exits(
    subject: Subject, checkpoints: Checkpoints, images: Sequence[LabelledImages], **options: Any
) -> None:
    """Measures the exits at each checkpoint of a run, writes the figures and prints them.

    Args:
        subject: The run and the dataset.
        checkpoints: The run's checkpoints.
        images: Training and test images; their transforms are ignored.
        **options: Further options of :func:`measure_exits`.
    """
    folder = subject.folder or checkpoints.run
    rows = measure_exits(subject, checkpoints, images, folder, **options)
    print_table(f"{subject.name}, {subject.source.name}", COLUMNS, list(iterate_cells(rows)))
    print(f"Written to {folder / 'mutual_information.md'}, .json and .png.")
