"""Reads and writes evaluation.json, and evaluation.md for people.

evaluation.json has a record for each backbone, dataset, fraction of the labels, protocol and seed.
Evaluations into the same folder add records; the same measurement replaces its earlier record.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mixco_lightly.evaluation.tables import format_markdown
from mixco_lightly.files import replace_file

if TYPE_CHECKING:  # whose module imports timm
    from mixco_lightly.evaluation.evaluator import Measurement

FORMAT = "mixco-lightly evaluation 1"
JSON_NAME = "evaluation.json"
MARKDOWN_NAME = "evaluation.md"

Record = dict[str, Any]
# What identifies a record. The other fields are settings and results.
_IDENTITY = ("backbone", "dataset", "data_dir", "label_fraction", "protocol", "seed")


def identify(record: Record) -> tuple[Any, ...]:
    """Returns what identifies a record; two records with the same identity measure the same."""
    return tuple(record[name] for name in _IDENTITY)


def read_report(folder: Path) -> list[Record]:
    """Reads the records in a folder's evaluation.json.

    Args:
        folder: The folder.

    Returns:
        The records; none if there is no such file.

    Raises:
        ValueError: If the file is not an evaluation of this version.
    """
    path = folder / JSON_NAME
    if not path.is_file():
        return []
    try:
        report = json.loads(path.read_text())
        if report["format"] != FORMAT:
            raise ValueError(f"its format is {report['format']!r}")
        records: list[Record] = report["results"]
        for record in records:
            identify(record)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not an evaluation of this version ({error!r}): move it away, or choose "
            "another --output_dir."
        ) from error
    return records


class Report:
    """The records of a folder, which are on disk at any time.

    Args:
        folder: The folder. None for records that are not written.

    Raises:
        ValueError: If the folder's evaluation.json is not of this version.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._records = [] if folder is None else read_report(folder)

    def check_settings(self, new: Iterable[Record]) -> None:
        """Raises a ValueError if a new record would replace one that has other settings."""
        if self._folder is not None:
            check_settings(self._folder, self._records, new)

    def add(self, record: Record) -> None:
        """Adds a record, or replaces the one with the same identity, and writes the files."""
        add_record(self._records, record)
        if self._folder is not None:
            write_report(self._folder, self._records)


def check_settings(folder: Path, old: Iterable[Record], new: Iterable[Record]) -> None:
    """Raises a ValueError if a new record would replace an old one that has other settings."""
    before = {identify(record): record["settings"] for record in old}
    for record in new:
        wanted: Record = record["settings"]
        was: Record = before.get(identify(record), wanted)
        for name in was.keys() | wanted.keys():
            if was.get(name) != wanted.get(name):
                raise ValueError(
                    f"{folder / JSON_NAME} has {record['protocol']} of {record['backbone']} on "
                    f"{record['dataset']} with {name} {was.get(name)}, not {wanted.get(name)}: add "
                    "--overwrite to replace such results, or choose another --output_dir."
                )


def add_record(records: list[Record], new: Record) -> None:
    """Adds a record, or replaces the one with the same identity."""
    for index, record in enumerate(records):
        if identify(record) == identify(new):
            records[index] = new
            return
    records.append(new)


def write_report(folder: Path, records: Sequence[Record]) -> None:
    """Writes both files into an existing folder; each file is complete at any time."""
    report = {"format": FORMAT, "results": records}
    texts = {
        JSON_NAME: json.dumps(report, indent=2) + "\n",
        MARKDOWN_NAME: format_markdown(records),
    }
    for name, text in texts.items():
        with replace_file(folder / name) as file:
            file.write(text.encode())


def complete_record(record: Record, measurement: Measurement) -> Record:
    """Returns a record with its results.

    Args:
        record: What is measured and how, see
            :func:`mixco_lightly.evaluation.subjects.describe_subject`.
        measurement: The results.

    Returns:
        The whole record.
    """
    last, epochs, _ = measurement.outcome
    results: Record = {
        "training_images": measurement.training_images,
        "test_images": measurement.test_images,
        **({} if math.isnan(last.top1) else {"top1": last.top1, "top5": last.top5}),
        **({"measures": dict(last.measures)} if last.measures else {}),
    }
    if epochs is not None:
        results["best_epoch_on_test"] = {
            "epoch": epochs.best_epoch,
            "top1": epochs.best.top1,
            "top5": epochs.best.top5,
            "measures": dict(epochs.best.measures),
        }
    return record | results | {"note": last.note, "versions": package_versions()}


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """Computes the SHA-256 of all weights and statistics, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect the figures."""
    packages = ("mixco-lightly", "torch", "lightly", "timm", "scikit-learn", "pytorch-lightning")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
