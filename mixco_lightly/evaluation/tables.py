"""The tables of an evaluation: as Markdown, and as cells to print."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mixco_lightly.data.catalogue import DATASETS
from mixco_lightly.evaluation.probe_result import ProbeResult
from mixco_lightly.evaluation.protocols import PROTOCOL_LABELS

BEST_EPOCH = "best epoch, chosen on the test images"
_FACTS = ["dataset", "labels", "backbone", "pretrained on", "seed"]


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
        metric: "top1" or "top5", or "measures" for a column for each further measure.

    Returns:
        The table, its rows in the order of datasets, label fractions, and then of the records.
    """
    columns, rows = _sort_results(records)
    if metric == "measures":
        names = [
            (column, measure)
            for column in columns
            for measure in _name_measures(row.get(column, {}) for _, row in rows)
        ]
        headings = [f"{column}, {measure}" for column, measure in names]
        values = [
            (facts, [row.get(column, {}).get("measures", {}).get(name) for column, name in names])
            for facts, row in rows
        ]
    else:
        headings = [
            column for column in columns if any(metric in row.get(column, {}) for _, row in rows)
        ]
        values = [
            (facts, [row.get(column, {}).get(metric) for column in headings]) for facts, row in rows
        ]
    found = [(facts, cells) for facts, cells in values if any(x is not None for x in cells)]
    return Table(_FACTS, headings, found)


def _sort_results(
    records: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[tuple[list[str], dict[str, Mapping[str, Any]]]]]:
    """Sorts results into rows and columns.

    Returns:
        Names of the columns, and for each row its facts and its results by column.
    """
    datasets = [_dataset_of(record) for record in records]
    rows: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
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
        row = rows.setdefault((key, facts), {})
        row[f"{label}, last epoch" if best else label] = record
        if best:
            row[f"{label}, {BEST_EPOCH}"] = best
    labels = (
        name
        for label in PROTOCOL_LABELS.values()
        for name in (label, f"{label}, last epoch", f"{label}, {BEST_EPOCH}")
    )
    columns = [name for name in labels if any(name in row for row in rows.values())]
    ordered = sorted(rows.items(), key=lambda item: item[0][0])
    return columns, [(list(facts), row) for (_, facts), row in ordered]


def _name_measures(results: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.get("measures", {})))


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
        "marks the best of several rows with the same labels. Further measures are in percent too;",
        "docs/recipes.md explains them. Settings and versions are in `evaluation.json`.",
    ]
    titles = {"top1": "Top-1", "top5": "Top-5", "measures": "Further measures"}
    for metric, title in titles.items():
        table = build_table(records, metric)
        if not table.rows:
            continue
        lines += ["", f"## {title}", "", f"| {' | '.join(table.facts + table.measures)} |"]
        lines.append("|" + "---|" * len(table.facts) + "---:|" * len(table.measures))
        for facts, values in table.rows:
            # Rows with the same dataset and labels.
            rivals = [others for names, others in table.rows if names[:2] == facts[:2]]
            cells = [
                _format(value)
                if metric == "measures"  # of some the lowest is the best
                else _format_cell(value, [others[column] for others in rivals])
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
            accuracies = (None if math.isnan(x) else x for x in result[:2])
            rows.append([name, label, *map(_format, accuracies), _join(result.measures)])
            if result.note:
                notes.append(f"{name}, {label}: {result.note}")
    return Listing(*_leave_out_empty([column, "protocol"], rows), notes, [])


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _join(measures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in measures.items())


def _leave_out_empty(facts: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Adds the names of the columns of figures, and leaves out that of further ones if empty."""
    columns = [*facts, "top-1 %", "top-5 %", "further %"]
    if any(row[-1] for row in rows):
        return columns, rows
    return columns[:-1], [row[:-1] for row in rows]


def list_records(records: Sequence[Mapping[str, Any]]) -> Listing:
    """Lists the accuracies of records.

    Args:
        records: Records of evaluation.json, at least one.

    Returns:
        A row for each accuracy. Facts that are the same in all rows have no column.
    """
    names, found = _sort_results(records)
    columns = list(zip(*(facts for facts, _ in found), strict=True))
    varying = [i for i, cells in enumerate(columns) if len(set(cells)) > 1]
    same = [
        f"{name} {cells[0]}"
        for name, cells in zip(_FACTS, columns, strict=True)
        if len(set(cells)) == 1
    ]
    rows = []
    for facts, row in found:
        for name in filter(row.__contains__, names):
            result = row[name]
            accuracies = (result.get("top1"), result.get("top5"))
            figures = [*map(_format, accuracies), _join(result.get("measures", {}))]
            rows.append([*(facts[i] for i in varying), name, *figures])
    heads = [*(_FACTS[i] for i in varying), "protocol"]
    return Listing(*_leave_out_empty(heads, rows), format_notes(records), same)
