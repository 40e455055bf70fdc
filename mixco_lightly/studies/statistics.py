"""Means over seeds, differences that are paired by seed, and their mean over settings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """Difference of two arms, over pairs of runs or over settings.

    Args:
        mean: Mean of the differences.
        deviation: Their standard deviation; NaN for a single one.
        half_width: Half the width of the 95% interval; NaN for a single one.
    """

    mean: float
    deviation: float
    half_width: float


class Curve(NamedTuple):
    """Mean over runs of an accuracy during training.

    Args:
        positions: Images seen, or seconds.
        means: Accuracies.
        deviations: Their standard deviations over the runs.
    """

    positions: list[float]
    means: list[float]
    deviations: list[float]


def paired_difference(
    rows: Sequence[Mapping[str, Any]], figure: str, group: str, arms: tuple[str, str]
) -> Difference | None:
    """Computes by how much the second arm is ahead of the first, paired by seed.

    The interval is that of Student's t with one degree of freedom less than pairs.

    Args:
        rows: Runs, as results.json lists them.
        figure: Name of the figure.
        group: Group to compare in.
        arms: Names of the base and of the change.

    Returns:
        The difference, or None if no seed has the figure in both arms.

    Examples:
        >>> from mixco_lightly.studies.statistics import paired_difference
        >>> rows = [
        ...     {"group": "", "arm": arm, "seed": seed, "linear_top1": top1}
        ...     for arm, figures in [("plain", [50.0, 60.0]), ("MixCo", [52.0, 63.0])]
        ...     for seed, top1 in enumerate(figures)
        ... ]
        >>> paired_difference(rows, "linear_top1", "", ("plain", "MixCo")).mean
        2.5
    """
    base, arm = (
        {
            row["seed"]: row[figure]
            for row in rows
            if (row["group"], row["arm"]) == (group, name) and figure in row
        }
        for name in arms
    )
    differences = [arm[seed] - base[seed] for seed in sorted(base.keys() & arm.keys())]
    return _student_interval(differences) if differences else None


def pooled_difference(means: Sequence[float]) -> Difference:
    """Computes the mean difference over settings, with an interval for the mean of such settings.

    The interval is Student's t over the settings' mean differences, so both the spread between
    settings and the noise of seeds widen it. Every setting counts the same: with three seeds its
    own variance is too uncertain to be its weight, as a random-effects estimate would have it.

    Args:
        means: Mean difference of each setting, from :func:`paired_difference`. Settings that share
            runs are not independent: give their average as one.

    Raises:
        ValueError: If there is no setting.

    Examples:
        >>> from mixco_lightly.studies.statistics import pooled_difference
        >>> pooled_difference([1.0, 2.0, 6.0]).mean
        3.0
    """
    if not means:
        raise ValueError("There is no setting to pool: give the difference of at least one.")
    return _student_interval(means)


def _student_interval(values: Sequence[float]) -> Difference:
    """Returns the mean of independent values with Student's 95% interval."""
    mean, n = statistics.mean(values), len(values)
    if n == 1:
        return Difference(mean, math.nan, math.nan)
    from scipy.stats import t

    deviation = statistics.stdev(values)
    return Difference(mean, deviation, float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n))


def average_curves(runs: Sequence[Mapping[str, Any]], unit: str) -> Curve:
    """Computes the mean curve of runs, over images seen or over seconds.

    Args:
        runs: Runs of one arm, as results.json lists them.
        unit: ``images`` or ``seconds``.
    """
    points = list(zip(*(run["curve"] for run in runs), strict=False))
    share = 1.0
    if unit == "seconds":
        share = statistics.mean(run["seconds"] / run["images"] for run in runs)
    accuracies = [[accuracy for _, accuracy in at] for at in points]
    return Curve(
        [statistics.mean(images for images, _ in at) * share for at in points],
        [statistics.mean(values) for values in accuracies],
        [statistics.stdev(values) if len(values) > 1 else 0.0 for values in accuracies],
    )
