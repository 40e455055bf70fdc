"""Run the papers' tables on one GPU: MoCo v2 and SimCLR with MixCo, and SelfCon in one stage.

    python recipes/paper.py --data_root data
    python recipes/paper.py --data_root data --scale 0.1 --slice_minutes 50

It runs studies of compare.py one after another, each in a folder of output_dir. First it measures
how long they take on this machine, and prints and writes the minutes of each arm. It can be stopped
or killed at any moment: the same command goes on where it was. Nothing is downloaded.

Data, in data_root: tiny-imagenet-200, and cifar-10-batches-py and cifar-100-python as torchvision
unpacks them.

The tables have the published figures, where they are known, beside the measured ones.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mixco_lightly.studies.commands import (
    begin_study,
    check_data,
    describe_stop,
    print_minutes,
    print_results,
)
from mixco_lightly.studies.plan import Run, Study
from mixco_lightly.studies.scale import scaled_folder
from mixco_lightly.studies.study_file import check_study_file
from mixco_lightly.training.command_line import check_options, parse_options
from mixco_lightly.training.errors import fail_in_one_line
from mixco_lightly.training.interrupts import end_in_one_line
from mixco_lightly.training.option_files import find_preset, read_options
from mixco_lightly.training.option_types import PositiveFloat, PositiveInt

STUDIES = [
    "paper-cifar10-study",
    "paper-cifar100-study",
    "paper-selfcon-study",
    "paper-tiny-imagenet-study",
]


@dataclass(frozen=True)
class PaperConfig:
    """Which tables, and how.

    Args:
        studies: Presets or files of studies, in the order in which they run.
        data_root: Folder that contains the data.
        output_dir: Folder of the studies.
        scale: What the epochs of all runs and evaluations are multiplied by; the names of the
            folders and the headings of the tables then have it.
        jobs: Number of runs at a time, which share the device and the processors.
        slice_minutes: Minutes after which it stops, at the next checkpoint; the same command goes
            on. Default: when all studies are finished.
    """

    studies: list[str] = field(default_factory=lambda: [*STUDIES])
    data_root: str = "data"
    output_dir: str = "runs/paper"
    scale: PositiveFloat = 1.0
    jobs: PositiveInt = 1
    slice_minutes: PositiveFloat | None = None


class Table(NamedTuple):
    """A study that is ready to run.

    Args:
        study: The study.
        folder: Its folder.
        runs: Its runs.
    """

    study: Study
    folder: Path
    runs: list[Run]


def main() -> None:
    """Runs the studies, or goes on with them, and prints their tables."""
    end_in_one_line()
    config = parse_options(PaperConfig, __doc__)
    with fail_in_one_line():
        tables = [open_table(name, config) for name in config.studies]
        check_data([run for table in tables for run in table.runs])
        run_tables(tables, config)


def open_table(name: str, config: PaperConfig) -> Table:
    """Reads a study, plans its runs and makes its folder."""
    path = Path(name) if Path(name).is_file() else find_preset(name)
    check_study_file(path)
    options = read_options(path)
    name = Path(options.pop("output_dir", path.stem)).name
    given = {"data_root": config.data_root, "scale": config.scale}
    study = check_options(Study, {**options, **given})
    folder = scaled_folder(Path(config.output_dir) / name, config.scale)
    return Table(study, folder, begin_study(study, folder, resume=True))


def run_tables(tables: list[Table], config: PaperConfig) -> None:
    """Plans the minutes of all studies, then makes or resumes their runs."""
    from mixco_lightly.studies.execute import run_all
    from mixco_lightly.studies.minutes import plan_minutes
    from mixco_lightly.studies.results import write_results
    from mixco_lightly.studies.slices import Slice
    from mixco_lightly.studies.study_page import report_study

    part = Slice(config.slice_minutes)
    minutes = 0.0
    for study, folder, runs in tables:
        plan = plan_minutes(study, runs, folder)
        print_minutes(study.question, plan)
        minutes += plan.total
    every = [run for table in tables for run in table.runs]
    print(f"All {len(every)} runs: {minutes:,.1f} minutes, one run at a time.", flush=True)
    failures = []
    for study, folder, runs in tables:
        try:
            failures += run_all(study, runs, folder, config.jobs, part)
        except KeyboardInterrupt:
            sys.exit("Stopped. Go on with the same command.")
        write_results(study, runs, folder, config.jobs)
        report_study(folder)
        print_results(folder)
        if part.is_over():
            break
    if failures:
        sys.exit("error: " + "\n".join(["runs failed:", *failures]))
    if config.slice_minutes and (stop := describe_stop(every, config.slice_minutes)):
        print(f"{stop} Go on with the same command.")


if __name__ == "__main__":
    main()
