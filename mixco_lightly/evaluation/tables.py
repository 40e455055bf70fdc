"""The tables of an evaluation: as Markdown, and as cells to print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mixco_lightly.data.catalogue import DATASETS
from mixco_lightly.evaluation.probe_result import ProbeResult
from mixco_lightly.evaluation.protocols import PROTOCOL_LABELS

BEST_EPOCH = "best epoch, chosen on the test images"


class Table(NamedTuple):
    """Accuracies of backbones on datasets, with a column for each protocol.

    Attributes:
        facts: Names of the columns that describe a row.
        measures: Names of the columns of accuracies.
        rows: The facts of each row and its accuracies in percent, None where not measured.
    """

    facts: list[str]
    measures: list[str]
    rows: list[tuple[list[str], list[float | None]]]


class Listing(NamedTuple):
    """A table to print.

    Attributes:
        columns: Names of the columns.
        rows: Cells of each row.
        notes: Lines below the table.
        same: The facts that all rows share, which have no column.
    """

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    same: list[str]


def build_table(records: Sequence[Mapping[str, Any]], metric: str) -> Table:
    """Builds a table with a row for the records that differ in the protocol only.

    Args:
        records: Records of evaluation.json.
        metric: "top1" or "top5".

    Returns:
        The table, its rows in the order of datasets, label fractions, and then of the records.
    """
    datasets = [_dataset_of(record) for record in records]
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


def _dataset_of(record: Mapping[str, Any]) -> str:
    return name_dataset(record["dataset"], record["data_dir"])


def name_dataset(name: str, data_dir: str | None) -> str:
    """Names a dataset in a table, with its folder if the name does not say which images it has."""
    is_generic = ":" in name or (name in DATASETS and DATASETS[name].is_generic)
    return f"{name} {data_dir}" if is_generic else name


def format_markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """Formats the accuracies of all records as Markdown, the best backbone's in bold."""
    lines = [
        "# Evaluation",
        "",
        "Accuracy in percent on all test images. `labels` is the fraction, and the number, of the",
        "training images whose labels a protocol used. A best epoch is chosen on the test images",
        "themselves, so its accuracy is biased upwards; do not compare it with the others. Bold",
        "marks the best of several rows with the same labels. Settings and versions are in",
        "`evaluation.json`.",
    ]
    for metric, title in [("top1", "Top-1"), ("top5", "Top-5")]:
        table = build_table(records, metric)
        lines += ["", f"## {title}", "", f"| {' | '.join(table.facts + table.measures)} |"]
        lines.append("|" + "---|" * len(table.facts) + "---:|" * len(table.measures))
        for facts, values in table.rows:
            # Rows with the same dataset and labels.
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


def format_notes(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Formats the records' notes, each after a description of its record."""
    return [
        f"{record['backbone']}, {_dataset_of(record)}, {100 * record['label_fraction']:g}% of "
        f"the labels, {PROTOCOL_LABELS[record['protocol']]}: {record['note']}"
        for record in records
        if record["note"]
    ]


def list_results(column: str, results: Mapping[str, Mapping[str, ProbeResult]]) -> Listing:
    """Lists the accuracies of named results.

    Args:
        column: Name of the column of names.
        results: Results by name and protocol.

    Returns:
        A row for each result.
    """
    rows, notes = [], []
    for name, protocols in results.items():
        for protocol, result in protocols.items():
            label = PROTOCOL_LABELS.get(protocol, protocol)
            rows.append([name, label, f"{result.top1:.2f}", f"{result.top5:.2f}"])
            if result.note:
                notes.append(f"{name}, {label}: {result.note}")
    return Listing([column, "protocol", "top-1 %", "top-5 %"], rows, notes, [])


def list_records(records: Sequence[Mapping[str, Any]]) -> Listing:
    """Lists the accuracies of records.

    Args:
        records: Records of evaluation.json, at least one.

    Returns:
        A row for each accuracy. Facts that are the same in all rows have no column.
    """
    top1, top5 = (build_table(records, metric) for metric in ("top1", "top5"))
    columns = list(zip(*(facts for facts, _ in top1.rows), strict=True))
    varying = [i for i, cells in enumerate(columns) if len(set(cells)) > 1]
    same = [
        f"{name} {cells[0]}"
        for name, cells in zip(top1.facts, columns, strict=True)
        if len(set(cells)) == 1
    ]
    rows = [
        [*(facts[i] for i in varying), name, f"{first:.2f}", f"{fifth:.2f}"]
        for (facts, firsts), (_, fifths) in zip(top1.rows, top5.rows, strict=True)
        for name, first, fifth in zip(top1.measures, firsts, fifths, strict=True)
    ]
    names = [*(top1.facts[i] for i in varying), "protocol", "top-1 %", "top-5 %"]
    return Listing(names, rows, format_notes(records), same)
