"""A study's report.html, from its results.json: differences, curves, links to its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mixco_lightly.reports.charts import COLOURS, Chart, Interval, Line, draw_forest, draw_lines
from mixco_lightly.reports.page import write_or_warn, write_page
from mixco_lightly.studies.plan import folder_name
from mixco_lightly.studies.report import (
    Results,
    list_figures,
    notes,
    read_results,
    tabulate,
    title_of,
)
from mixco_lightly.studies.statistics import average_curves, paired_difference

PAGE = "report.html"
# More lines than this cannot be told apart.
MAX_ARMS = 2 * len(COLOURS)


def report_study(output_dir: Path) -> None:
    """Writes a study's report.html and prints its path; an error is a line and fails nothing.

    Args:
        output_dir: The study's folder. Without results.json in it, nothing is written.
    """
    if (output_dir / "results.json").is_file():
        write_or_warn(
            output_dir / PAGE,
            "differences and curves",
            lambda: write_study_page(read_results(output_dir), output_dir),
        )


def write_study_page(results: Results, output_dir: Path) -> None:
    """Writes report.html."""
    import yaml

    columns, rows = tabulate(results)
    write_page(
        output_dir / PAGE,
        "study.html",
        title=title_of(results),
        base=results["base_name"],
        finished=len(results["runs"]),
        planned=results.get("planned", len(results["runs"])),
        table=(columns, rows),
        notes=notes(results),
        forests=draw_differences(results),
        curves=draw_curves(results),
        max_arms=MAX_ARMS,
        runs=link_runs(results["runs"], output_dir),
        study=yaml.safe_dump(results["study"], sort_keys=False, allow_unicode=True, width=100),
        sections=[],
        map_script="",
    )


def draw_differences(results: Results) -> list[Chart]:
    """Draws each arm's differences to the base, a forest plot for each figure."""
    rows, base = results["runs"], results["base_name"]
    headings, compared = list_figures(results)
    charts = []
    for figure in compared:
        intervals = [
            Interval(f"{group}, {arm}" if group else arm, found.mean, found.half_width)
            for group, arm in dict.fromkeys((row["group"], row["arm"]) for row in rows)
            if arm != base and (found := paired_difference(rows, figure, group, (base, arm)))
        ]
        if intervals:
            title = headings[figure].removesuffix(", top-1 %").removesuffix(", %")
            charts.append(draw_forest(title, f"points ahead of {base}, 95% interval", intervals))
    return charts


def draw_curves(results: Results) -> list[Chart]:
    """Draws kNN accuracy during training over images seen, one chart for each group."""
    charts = []
    for group in dict.fromkeys(row["group"] for row in results["runs"]):
        arms: dict[str, list[Mapping[str, Any]]] = {}
        for row in results["runs"]:
            if row["group"] == group and row["curve"]:
                arms.setdefault(row["arm"], []).append(row)
        lines = []
        for index, arm in enumerate(choose_arms(arms, results["base_name"])):
            xs, means, deviations = average_curves(arms[arm], "images")
            name = f"{arm} ({len(arms[arm])} seeds)"
            lines.append(Line(name, xs, means, deviations, index, index >= len(COLOURS)))
        if lines:
            title = group or "kNN while training"
            charts.append(draw_lines(title, "images seen", "kNN on held-out images, %", lines))
    return charts


def choose_arms(arms: Mapping[str, Sequence[Mapping[str, Any]]], base: str) -> list[str]:
    """Chooses the arms that are drawn: the base and the best ones, in their own order."""

    def last(arm: str) -> float:
        return average_curves(arms[arm], "images").means[-1]

    ranked = sorted(arms, key=lambda arm: (arm != base, -last(arm)))
    return [arm for arm in arms if arm in ranked[:MAX_ARMS]]


def link_runs(rows: Sequence[Mapping[str, Any]], output_dir: Path) -> list[dict[str, str]]:
    """Returns each run's name, seed and the address of its report, empty if it has none."""
    linked = []
    for row in rows:
        folder = Path(folder_name(row["group"]), folder_name(row["arm"]), f"seed-{row['seed']}")
        page = folder / PAGE
        is_there = (output_dir / page).is_file()
        linked.append(
            {
                "name": ", ".join(filter(None, [row["group"], row["arm"]])),
                "seed": str(row["seed"]),
                "address": quote(page.as_posix()) if is_there else "",
            }
        )
    return linked
