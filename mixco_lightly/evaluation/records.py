"""The files that an evaluation leaves behind: evaluation.json and, to read, evaluation.md.

evaluation.json has a record for each backbone, dataset, fraction of the labels, protocol and seed.
Evaluations into the same folder add to it; only the same measurement takes a record's place.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixco_lightly.data.catalogue import DATASETS
from mixco_lightly.files import replace_file

FORMAT = "mixco-lightly evaluation 1"
JSON_NAME = "evaluation.json"
MARKDOWN_NAME = "evaluation.md"

PROTOCOL_LABELS = {
    "torch": "linear, torch",
    "sklearn": "linear, scikit-learn",
    "knn": "kNN",
    "paper": "linear, paper",
    "finetune": "fine-tuned",
}
BEST_EPOCH = "best epoch, chosen on the test images"

Record = dict[str, Any]
# What a record is of. The rest is how it was measured and what came out.
_IDENTITY = ("backbone", "dataset", "data_dir", "label_fraction", "protocol", "seed")


class Table(NamedTuple):
    """Accuracies of backbones on datasets, by protocol.

    Attributes:
        facts: Names of the columns that say what a row is of.
        measures: Names of the columns of accuracies.
        rows: The facts of each row, and its accuracies in percent or None where not measured.
    """

    facts: list[str]
    measures: list[str]
    rows: list[tuple[list[str], list[float | None]]]


def identify(record: Record) -> tuple[Any, ...]:
    """What the record is of: two with the same identity are the same measurement."""
    return tuple(record[name] for name in _IDENTITY)


def read_report(folder: Path) -> list[Record]:
    """The records in a folder's evaluation.json; none if there is no such file.

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


def check_settings(folder: Path, old: Iterable[Record], new: Iterable[Record]) -> None:
    """Raises a ValueError if a new record would take an old one's place with other settings."""
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
    """Adds a record, or puts it into the place of the one with its identity."""
    for index, record in enumerate(records):
        if identify(record) == identify(new):
            records[index] = new
            return
    records.append(new)


def write_report(folder: Path, records: Sequence[Record]) -> None:
    """Writes both files into a folder that exists; each is whole at any time."""
    report = {"format": FORMAT, "results": records}
    texts = {
        JSON_NAME: json.dumps(report, indent=2) + "\n",
        MARKDOWN_NAME: format_markdown(records),
    }
    for name, text in texts.items():
        with replace_file(folder / name) as file:
            file.write(text.encode())


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of all weights and statistics, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the figures."""
    packages = ("mixco-lightly", "torch", "lightly", "timm", "scikit-learn", "pytorch-lightning")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def build_table(records: Sequence[Record], metric: str) -> Table:
    """Gathers the accuracies ("top1" or "top5") of records that share all but the protocol.

    Rows are in the order of datasets, fractions of the labels, and then of the records.
    """
    datasets = [_name_dataset(record) for record in records]
    rows: dict[tuple[Any, ...], dict[str, float]] = {}
    for record, dataset in zip(records, datasets, strict=True):
        key = (datasets.index(dataset), record["label_fraction"])
        facts = (
            dataset,
            f"{100 * record['label_fraction']:g}% ({record['training_images']:,})",
            record["backbone"],
            record["pretrained_on"],
            str(record["seed"]),
        )
        label, best = PROTOCOL_LABELS[record["protocol"]], record.get("best_epoch_on_test")
        values = rows.setdefault((key, facts), {})
        values[f"{label}, last epoch" if best else label] = record[metric]
        if best:
            values[f"{label}, {BEST_EPOCH}"] = best[metric]
    labels = (
        name
        for label in PROTOCOL_LABELS.values()
        for name in (label, f"{label}, last epoch", f"{label}, {BEST_EPOCH}")
    )
    measures = [name for name in labels if any(name in values for values in rows.values())]
    ordered = sorted(rows.items(), key=lambda item: item[0][0])
    return Table(
        ["dataset", "labels", "backbone", "pretrained on", "seed"],
        measures,
        [(list(facts), [values.get(name) for name in measures]) for (_, facts), values in ordered],
    )


def _name_dataset(record: Record) -> str:
    name: str = record["dataset"]
    is_generic = name in DATASETS and DATASETS[name].is_generic
    return f"{name} {record['data_dir']}" if is_generic else name


def format_markdown(records: Sequence[Record]) -> str:
    """The accuracies of all records as Markdown tables, the best backbone of each in bold."""
    lines = [
        "# Evaluation",
        "",
        "Accuracy in percent on all test images. `labels` is the part, and the number, of the",
        "training images that a protocol was given. A best epoch is one of many, chosen on the",
        "test images themselves: its accuracy is too high to be compared with the others. In bold",
        "the best of several rows with the same labels. Settings and versions are in",
        "`evaluation.json`.",
    ]
    for metric, title in [("top1", "Top-1"), ("top5", "Top-5")]:
        table = build_table(records, metric)
        lines += ["", f"## {title}", "", f"| {' | '.join(table.facts + table.measures)} |"]
        lines.append("|" + "---|" * len(table.facts) + "---:|" * len(table.measures))
        for facts, values in table.rows:
            # The same dataset and labels.
            rivals = [others for names, others in table.rows if names[:2] == facts[:2]]
            cells = [
                _format_cell(value, [others[column] for others in rivals])
                for column, value in enumerate(values)
            ]
            lines.append(f"| {' | '.join(facts + cells)} |")
    notes = format_notes(records)
    if notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _format_cell(value: float | None, rivals: Sequence[float | None]) -> str:
    if value is None:
        return ""
    measured = [other for other in rivals if other is not None]
    is_best = len(measured) > 1 and value == max(measured)
    return f"**{value:.2f}**" if is_best else f"{value:.2f}"


def format_notes(records: Iterable[Record]) -> list[str]:
    """The records' notes, each with what it is of."""
    return [
        f"{record['backbone']}, {_name_dataset(record)}, {100 * record['label_fraction']:g}% of "
        f"the labels, {PROTOCOL_LABELS[record['protocol']]}: {record['note']}"
        for record in records
        if record["note"]
    ]
