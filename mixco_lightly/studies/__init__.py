"""Comparisons of runs over seeds: plan, execution, statistics and report."""

from typing import TYPE_CHECKING

from mixco_lightly.lazy import lazy_exports

if TYPE_CHECKING:
    from mixco_lightly.studies.execute import run_all as run_all
    from mixco_lightly.studies.forest import write_forest as write_forest
    from mixco_lightly.studies.minutes import Minutes as Minutes, plan_minutes as plan_minutes
    from mixco_lightly.studies.plan import Run as Run, Study as Study, plan_runs as plan_runs
    from mixco_lightly.studies.report import render as render, write_report as write_report
    from mixco_lightly.studies.results import write_results as write_results
    from mixco_lightly.studies.slices import Slice as Slice
    from mixco_lightly.studies.statistics import (
        Difference as Difference,
        paired_difference as paired_difference,
        pooled_difference as pooled_difference,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    execute="run_all",
    forest="write_forest",
    minutes="Minutes plan_minutes",
    plan="Run Study plan_runs",
    report="render write_report",
    results="write_results",
    slices="Slice",
    statistics="Difference paired_difference pooled_difference",
)
