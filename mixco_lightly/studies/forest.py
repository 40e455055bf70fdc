"""Draws a forest plot: the difference to plain training in every setting of many studies."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mixco_lightly.evaluation.figures import name_figure
from mixco_lightly.files import replace_file
from mixco_lightly.studies.report import Results, format_difference, read_results
from mixco_lightly.studies.statistics import Difference, paired_difference, pooled_difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN = "plain"
PANELS = {name_figure("backbone", "torch"): "linear probe", name_figure("backbone", "knn"): "kNN"}
# Values of the option ``augmentations``, in the order of the sections.
SECTIONS = {"crop-flip": "few augmentations", "full": "usual augmentations"}
# Two settings give an interval of 12.7 standard errors, which says nothing.
MIN_POOLED_SETTINGS = 3
# Of the plot, in inches.
EPOCHS_WIDTH = 0.6
PANEL_WIDTH = 2.8


class Setting(NamedTuple):
    """An arm beside plain training, perhaps of as much compute, in one group of a study.

    Args:
        study: Name of the study's folder.
        group: Name of the group; may be empty.
        arm: Name of the arm.
        augmentations: Value of that option.
        epochs: Epochs of the plain runs and of the arm's.
        differences: The arm minus plain, for each figure in ``PANELS``.
        base_runs: How the plain runs are trained, which is equal in every study that shows them, or
            repeats them with the same seeds.
        arm_runs: How the arm's runs are trained.
    """

    study: str
    group: str
    arm: str
    augmentations: str
    epochs: tuple[int, int]
    differences: dict[str, Difference]
    base_runs: frozenset[str]
    arm_runs: frozenset[str]


class Row(NamedTuple):
    """A line of the plot.

    Args:
        study: Name of the study; the title of a section; pooled.
        label: Group and arm.
        epochs: Epochs of both arms, as text.
        differences: What is drawn, for each figure in ``PANELS``; empty for a section.
        pooled: Whether the differences are means over settings.
    """

    study: str
    label: str = ""
    epochs: str = ""
    differences: Mapping[str, Difference] = {}
    pooled: bool = False


def write_forest(folder: Path, path: Path) -> list[Row]:
    """Draws the differences of all studies in a folder, and returns what was drawn.

    Args:
        folder: Folder with a folder for each study.
        path: PNG file to write.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If no study compares with plain training over several seeds.
    """
    rows = arrange(read_settings(folder))
    with replace_file(path) as file:
        plot(rows).savefig(file, dpi=120, format="png")
    return rows


def read_settings(folder: Path) -> list[Setting]:
    """Lists the settings of all studies in a folder, each once.

    Leaves out studies whose base is not named plain, arms that are plain training too, and arms
    that share one seed with the base. If two studies show the same runs, the first one counts.

    Raises:
        ValueError: If there is none.
    """
    settings: list[Setting] = []
    shown = []
    for path in sorted(folder.glob("*/results.json")):
        for setting in _list_settings(path.parent.name, read_results(path.parent)):
            runs = (setting.base_runs, setting.arm_runs, setting.differences)
            if runs not in shown:
                settings.append(setting)
                shown.append(runs)
    if not settings:
        raise ValueError(
            f"No study in {folder} compares with a base named {PLAIN} over several seeds: name a "
            "folder with the folders of such studies."
        )
    return settings


def pool(settings: Sequence[Setting], figure: str) -> Difference | None:
    """Computes the mean difference over settings; None if too few of them are independent."""
    means = average_linked(settings, figure)
    return pooled_difference(means) if len(means) >= MIN_POOLED_SETTINGS else None


def average_linked(settings: Sequence[Setting], figure: str) -> list[float]:
    """Returns the differences of independent settings.

    Settings that share runs, such as one arm beside two baselines, or repeat them with the same
    seeds, count as one: their average.
    """
    clusters: list[list[Setting]] = []
    for setting in settings:
        if figure in setting.differences:
            linked = [each for each in clusters if any(_share_runs(setting, x) for x in each)]
            clusters = [each for each in clusters if each not in linked]
            clusters.append([setting, *(x for each in linked for x in each)])
    return [statistics.mean(x.differences[figure].mean for x in each) for each in clusters]


def arrange(settings: Sequence[Setting]) -> list[Row]:
    """Orders the settings: sections by augmentations, studies and settings by their gain.

    An arm with enough settings has a pooled row at the end of each section, and at the very end.
    """
    known = {x.augmentations for x in settings}
    rows = []
    for augmentations in [*SECTIONS, *sorted(known - SECTIONS.keys())]:
        found = [x for x in settings if x.augmentations == augmentations]
        if not found:
            continue
        title = SECTIONS.get(augmentations, augmentations)
        rows.append(Row(title))
        best = {x.study: max(_gain(y) for y in found if y.study == x.study) for x in found}
        found.sort(key=lambda x: (-best[x.study], x.study, -_gain(x)))
        rows += [_row(setting) for setting in found]
        rows += _pooled_rows(found)
    pooled = _pooled_rows(settings)
    return [*rows, *([Row("all settings"), *pooled] if pooled else [])]


def tabulate(rows: Iterable[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns headings and cells of the plotted differences."""
    head = ["study", "setting", "epochs", *(f"{title}, difference" for title in PANELS.values())]
    return head, [
        [
            *(row.study, row.label, row.epochs),
            *(format_difference(row.differences.get(figure)) for figure in PANELS),
        ]
        for row in rows
        if row.differences
    ]


def plot(rows: Sequence[Row]) -> Figure:
    """Draws the rows from top to bottom, a panel for each figure."""
    from matplotlib.figure import Figure

    # In inches; the longest bold text fits its column.
    study_width, label_width = (
        0.1 + 0.075 * max(len(text) for text in texts)
        for texts in ([row.study for row in rows if row.differences], [row.label for row in rows])
    )
    text_width = study_width + label_width + EPOCHS_WIDTH
    # White behind everything: the page may be dark.
    figure = Figure(
        figsize=(text_width + 2 * PANEL_WIDTH, 1.1 + 0.27 * len(rows)),
        layout="constrained",
        facecolor="white",
    )
    ratios = [text_width, PANEL_WIDTH, PANEL_WIDTH]
    names, *panels = figure.subplots(1, 3, sharey=True, width_ratios=ratios)
    panels[1].sharex(panels[0])
    names.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    names.axis("off")
    for axis, (name, title) in zip(panels, PANELS.items(), strict=True):
        axis.axvline(0, color="black", linewidth=1)
        axis.set(xlabel="points", yticks=[])
        axis.set_title(title, fontsize=11)
        axis.spines[["left", "right", "top"]].set_visible(False)
        axis.grid(axis="x", alpha=0.3)
        for y, row in enumerate(rows):
            if name in row.differences:
                _draw_difference(axis, y, row.differences[name], row.pooled)
    shaded, study = False, ""
    for y, row in enumerate(rows):
        is_new, study = row.study != study, row.study
        if is_new:
            shaded = bool(row.differences) and not row.pooled and not shaded
        if shaded:
            for axis in (names, *panels):
                axis.axhspan(y - 0.5, y + 0.5, color="#eef3f8", linewidth=0, zorder=0)
        weight = "normal" if row.differences and not row.pooled else "bold"
        if is_new:
            names.text(0, y, row.study, va="center", fontsize=9, weight=weight)
        names.text(study_width / text_width, y, row.label, va="center", fontsize=9, weight=weight)
        names.text(1, y, row.epochs, va="center", ha="right", fontsize=9)
    names.set_title("epochs, plain / arm", loc="right", fontsize=9)
    figure.suptitle(
        "Points of top-1 ahead of plain training, with 95% intervals (grey: contains zero)"
    )
    return figure


def _list_settings(study: str, results: Results) -> list[Setting]:
    if results["base_name"] != PLAIN:
        return []
    rows = results["runs"]
    settings = []
    equal_compute = results.get("study", {}).get("equal_compute", {})
    pairs = [
        (group, base, arm)
        for group, arm in dict.fromkeys((row["group"], row["arm"]) for row in rows)
        for base in dict.fromkeys([PLAIN, equal_compute.get(arm, PLAIN)])
    ]
    for group, base, arm in pairs:
        found = {name: paired_difference(rows, name, group, (base, arm)) for name in PANELS}
        differences = {
            name: each for name, each in found.items() if each and not math.isnan(each.half_width)
        }
        if arm.split(",")[0] == PLAIN or not differences:
            continue
        base_rows, arm_rows = (
            [row for row in rows if (row["group"], row["arm"]) == (group, name)]
            for name in (base, arm)
        )
        settings.append(
            Setting(
                study=study,
                group=group,
                arm=arm,
                augmentations=arm_rows[0]["options"].get("augmentations", "full"),
                epochs=(base_rows[0]["epochs"], arm_rows[0]["epochs"]),
                differences=differences,
                base_runs=_identify(base_rows),
                arm_runs=_identify(arm_rows),
            )
        )
    return settings


def _identify(rows: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Returns how each run is trained: its recipe and options, but not how it is measured."""
    return frozenset(
        json.dumps(
            [row["recipe"], {name: x for name, x in row["options"].items() if name != "protocol"}],
            sort_keys=True,
        )
        for row in rows
    )


def _share_runs(one: Setting, other: Setting) -> bool:
    return bool((one.base_runs | one.arm_runs) & (other.base_runs | other.arm_runs))


def _gain(setting: Setting) -> float:
    """Returns the difference that orders the settings: the first panel's, if there is one."""
    return next(iter(setting.differences.values())).mean


def _row(setting: Setting) -> Row:
    # A section has the name of such a group already.
    group = "" if setting.group == SECTIONS.get(setting.augmentations) else setting.group
    label = group or setting.arm
    if group and setting.arm != "MixCo":
        label = f"{group}, {setting.arm}"
    base_epochs, arm_epochs = setting.epochs
    epochs = f"{base_epochs} / {arm_epochs}" if base_epochs != arm_epochs else f"{arm_epochs}"
    return Row(setting.study, label, epochs, setting.differences)


def _pooled_rows(settings: Sequence[Setting]) -> list[Row]:
    rows = []
    for arm in dict.fromkeys(x.arm for x in settings):
        own = [x for x in settings if x.arm == arm]
        pooled = {name: pool(own, name) for name in PANELS}
        differences = {name: each for name, each in pooled.items() if each}
        if differences:
            count = len(average_linked(own, next(iter(differences))))
            label = f"{arm}, {count} independent settings"
            rows.append(Row("pooled", label, "", differences, pooled=True))
    return rows


def _draw_difference(axis: Axes, y: float, difference: Difference, pooled: bool) -> None:
    mean, _, half = difference
    color = "#8a8a8a"  # the interval contains zero
    if abs(mean) > half:
        color = "#1f77b4" if mean > 0 else "#d62728"
    axis.errorbar(
        x=mean,
        y=y,
        xerr=half,
        fmt="D" if pooled else "o",
        color=color,
        markersize=7 if pooled else 5,
        linewidth=2.5 if pooled else 1.5,
        capsize=2,
    )
