"""Writes a study's table and plot, from its results.json alone."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from mixco_lightly.files import replace_file
from mixco_lightly.studies.figures import FIGURES, FURTHER, SPEED, TRANSFER_ENDING
from mixco_lightly.studies.published import published_cell, published_heading
from mixco_lightly.studies.statistics import Difference, average_curves, paired_difference

Results = dict[str, Any]


def read_results(output_dir: Path) -> Results:
    """Reads a study's results.json.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not JSON.
    """
    path = output_dir / "results.json"
    try:
        results: Results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): repeat the study's command with --resume to write it "
            "again."
        ) from error
    return results


def write_report(results: Results, output_dir: Path) -> None:
    """Writes results.json, results.md and results.png, each whole or not at all."""
    texts = {"results.json": json.dumps(results, indent=1) + "\n", "results.md": render(results)}
    for name, text in texts.items():
        with replace_file(output_dir / name) as file:
            file.write(text.encode())
    with replace_file(output_dir / "results.png") as file:
        draw(results, file)


def render(results: Results) -> str:
    """Returns the table of a study in Markdown, with its notes and its options."""
    import yaml

    head, rows = tabulate(results)
    lines = [f"| {' | '.join(cells)} |" for cells in [head, *rows]]
    lines.insert(1, f"|{'---|' * len(head)}")
    title = f"## {title_of(results)}\n\n" if title_of(results) else ""
    options = yaml.safe_dump(results["study"], sort_keys=False, allow_unicode=True, width=100)
    return f"{title}{chr(10).join(lines)}\n\n{notes(results)}\n\n```yaml\n{options}```\n"


def title_of(results: Results) -> str:
    """Returns the title of a study's table: its question, and a scale other than 1."""
    scale = results["study"].get("scale")
    return results["question"] + (f" (scale {scale:g})" if scale else "")


def notes(results: Results) -> str:
    """Returns how to read the table."""
    published = results["study"].get("published", {})
    scale = results["study"].get("scale", 1)
    return "".join(
        [
            *([f"Runs and evaluations have {scale:g} of their epochs. "] if scale != 1 else []),
            _how_to_read(results),
            _name_equal_compute(results),
            *(f" Paper, {name}: {block['source'].strip()}" for name, block in published.items()),
        ]
    )


def _name_equal_compute(results: Results) -> str:
    pairs = results["study"].get("equal_compute", {})
    named = "; ".join(f"{arm} beside {other}" for arm, other in pairs.items())
    return f" At equal compute: {named}." if named else ""


def _how_to_read(results: Results) -> str:
    return (
        "Accuracy on the test images unless the heading says otherwise, last epoch: mean ± "
        "standard deviation over seeds. The difference to the base is paired by seed, with "
        "Student's t interval. Seconds are of the training, with "
        f"{results['jobs']} run(s) at a time on {results['processors']} processors."
    )


def tabulate(results: Results) -> tuple[list[str], list[list[str]]]:
    """Returns the headings and the rows of a study's table."""
    rows, base = results["runs"], results["base_name"]
    headings, compared = list_figures(results)
    figures = list(headings)
    chosen = results["study"].get("figures") or FIGURES
    published, scale = results["study"].get("published", {}), results["study"].get("scale", 1)
    equal_compute = results["study"].get("equal_compute", {})
    has_speed = SPEED in chosen
    has_groups = any(row["group"] for row in rows)
    head = [*(["group"] if has_groups else []), "arm", "seeds"]
    for name in figures:
        if name in published:
            head += [f"{headings[name]}, ours", published_heading(published[name], scale)]
        else:
            head.append(headings[name])
        if name in compared:
            head += [f"minus {base} [95%]", *(["at equal compute [95%]"] if equal_compute else [])]
    head += ["images seen", "seconds", *(["images/s"] if has_speed else [])]
    lines = []
    for group, arm in dict.fromkeys((row["group"], row["arm"]) for row in rows):
        found = [row for row in rows if (row["group"], row["arm"]) == (group, arm)]
        cells = [*([group] if has_groups else []), arm, str(len(found))]
        for name in figures:
            cells.append(format_mean([x[name] for x in found]) if name in found[0] else "")
            if name in published:
                cells.append(published_cell(published[name], group, arm))
            if name in compared:
                cells.append(_minus(rows, name, group, base, arm))
                if equal_compute:
                    cells.append(_minus(rows, name, group, equal_compute.get(arm, arm), arm))
        cells.append(f"{statistics.mean(row['images'] for row in found):,.0f}")
        cells.append(f"{statistics.mean(row['seconds'] for row in found):,.0f}")
        if has_speed:
            cells.append(f"{statistics.mean(row[SPEED] for row in found):,.0f}")
        lines.append(cells)
    return head, lines


def _minus(rows: Sequence[Any], figure: str, group: str, base: str, arm: str) -> str:
    """Returns the cell of an arm's difference to a base; empty for the base itself."""
    return format_difference(
        None if arm == base else paired_difference(rows, figure, group, (base, arm))
    )


def list_figures(results: Results) -> tuple[dict[str, str], list[str]]:
    """Returns the headings of the figures that the table shows, and which it compares."""
    rows = results["runs"]
    headings = {
        **FIGURES,
        **FURTHER,
        **{name: name for row in rows for name in row if name.endswith(TRANSFER_ENDING)},
    }
    chosen = results["study"].get("figures") or FIGURES
    shown = {
        name: heading
        for name, heading in headings.items()
        if any(name in row for row in rows)
        and (name in chosen or name not in {**FIGURES, **FURTHER})
    }
    # The base may lack a figure, as SupCon has no sub-network, or be alone with it, as with that
    # of the random initialisation.
    base = results["base_name"]
    return shown, [
        name for name in shown if {x["arm"] == base for x in rows if name in x} == {True, False}
    ]


def format_mean(values: Sequence[float]) -> str:
    """Returns mean and standard deviation as the table has them.

    Examples:
        >>> from mixco_lightly.studies.report import format_mean
        >>> format_mean([50.0, 51.0, 52.0])
        '51.00 ± 1.00'
    """
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def format_difference(difference: Difference | None) -> str:
    """Returns a difference with its interval as the table has them; empty if there is none."""
    if difference is None:
        return ""
    mean, _, half = difference
    if math.isnan(half):
        return f"{mean:+.2f} (one pair)"
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def draw(results: Results, file: IO[bytes]) -> None:
    """Draws kNN accuracy during training, over images and over seconds, with bands over seeds."""
    from matplotlib.figure import Figure

    rows = results["runs"]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    figure = Figure(figsize=(10, 3.5 * len(groups)), layout="constrained")
    grid = figure.subplots(len(groups), 2, squeeze=False, sharey="row")
    for group, axes in zip(groups, grid, strict=True):
        found = [row for row in rows if row["group"] == group]
        for index, arm in enumerate(dict.fromkeys(row["arm"] for row in found)):
            members = [row for row in found if row["arm"] == arm]
            for axis, unit in zip(axes, ("images", "seconds"), strict=True):
                xs, means, deviations = average_curves(members, unit)
                axis.plot(xs, means, color=f"C{index}", label=f"{arm} ({len(members)} seeds)")
                low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
                high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
                axis.fill_between(xs, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
        axes[0].set(xlabel="images seen", ylabel="kNN on held-out training images, %", title=group)
        axes[1].set(xlabel="seconds of training")
        axes[0].legend(fontsize=8)
        for axis in axes:
            axis.grid(alpha=0.3)
    figure.suptitle(title_of(results))
    figure.savefig(file, dpi=110, format="png")
