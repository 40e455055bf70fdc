"""Compare single changes of a recipe over seeds: a table with intervals, and a plot.

    python recipes/compare.py --config recipes/presets/small-study.yaml --data_root data
    python recipes/compare.py --config recipes/presets/small-study.yaml --data_root data --resume

A study is a YAML file. It has a base (options of a recipe), named changes (options that differ from
the base) and, to repeat the comparison under other conditions, named groups (options that differ
for base and changes alike, such as another backbone). Base and changes run in every group with
every seed. Each run is an ordinary run of the recipe in a folder of its own. After an interruption
--resume skips finished runs and resumes the others. --slice_minutes stops a study by itself.

After every run these files are written to output_dir: results.json (every run's options, figures
and curve), results.md (mean, standard deviation, paired difference to the base with its 95%
interval, cost) and results.png (accuracy over images seen and over seconds); at the end also
report.html (differences, curves and links to the runs' reports, in one page). All accuracies are
those of the last epoch. Options and seed decide what a run learns, so a study can be repeated;
seconds depend on the machine. --scale 0.1 runs a tenth of all epochs, in a folder of its own.

    python recipes/compare.py --output_dir recipes/results --forest docs/results.png

draws the difference to plain training in every setting of the studies in a folder.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from mixco_lightly.studies import forest
from mixco_lightly.studies.commands import (
    begin_study,
    describe_stop,
    find_config_classes as find_config_classes,
    print_minutes,
    print_results,
)
from mixco_lightly.studies.plan import Study
from mixco_lightly.studies.report import read_results, write_report
from mixco_lightly.studies.scale import scaled_folder
from mixco_lightly.studies.study_file import check_study_file
from mixco_lightly.studies.study_page import report_study
from mixco_lightly.training.command_line import parse_options, print_table
from mixco_lightly.training.errors import fail_in_one_line
from mixco_lightly.training.interrupts import end_in_one_line
from mixco_lightly.training.option_types import PositiveFloat, PositiveInt


@dataclass(frozen=True)
class CompareConfig(Study):
    """How a study runs.

    Args:
        output_dir: Folder of the study.
        jobs: Number of runs at a time, which share the processors.
        background: Whether to continue in a process of its own, with its output in
            output_dir/compare.log.
        resume: Whether to resume the study in output_dir; finished runs are skipped.
        report: Whether only to write table, plot and page again, from output_dir/results.json.
        forest: PNG file. Only draws the differences to plain training there, of all studies whose
            folders are in output_dir.
        plan_minutes: Whether to time a few dozen steps of each arm before the runs, and to write
            to output_dir/minutes.md how long the study takes.
        slice_minutes: Minutes after which the study stops, at the next checkpoint of its runs; go
            on with --resume. Default: when it is finished.
    """

    output_dir: str = "runs/study"
    jobs: PositiveInt = 1
    background: bool = False
    resume: bool = False
    report: bool = False
    forest: str = ""
    plan_minutes: bool = False
    slice_minutes: PositiveFloat | None = None


def run_study(config: CompareConfig, output_dir: Path) -> None:
    """Makes or resumes the runs of a study; ends the program if it goes to the background."""
    from mixco_lightly.studies.execute import run_all, start_in_background, write_command
    from mixco_lightly.studies.minutes import plan_minutes
    from mixco_lightly.studies.results import write_results
    from mixco_lightly.studies.slices import Slice

    part = Slice(config.slice_minutes)
    runs = begin_study(config, output_dir, config.resume)
    if config.background:
        options = {**asdict(config), "background": False}
        log = output_dir / "compare.log"
        command = write_command(
            "compare", options, "--resume", output_dir / "logs" / "compare.yaml"
        )
        print(f"Process {start_in_background(command, log)} goes on. Watch it with:")
        print(f"  tail -f {log}")
        sys.exit()
    if config.plan_minutes:
        print_minutes(config.question, plan_minutes(config, runs, output_dir))
    try:
        failures = run_all(config, runs, output_dir, config.jobs, part)
    except KeyboardInterrupt:
        sys.exit("Stopped. Go on with the same command and --resume.")
    write_results(config, runs, output_dir, config.jobs)
    report_study(output_dir)
    if failures:
        sys.exit("error: " + "\n".join(["runs failed:", *failures]))
    if config.slice_minutes and (stop := describe_stop(runs, config.slice_minutes)):
        print(f"{stop} Go on with the same command and --resume.")


def main() -> None:
    """Runs a study, or goes on with it, and prints its table."""
    end_in_one_line()
    config = parse_options(CompareConfig, __doc__, check_study_file)
    if config.forest:
        with fail_in_one_line():
            rows = forest.write_forest(Path(config.output_dir), Path(config.forest))
        print_table(f"Differences to plain training -> {config.forest}", *forest.tabulate(rows))
        return
    output_dir = scaled_folder(config.output_dir, config.scale)
    with fail_in_one_line():
        if config.report:
            write_report(read_results(output_dir), output_dir)
            report_study(output_dir)
        else:
            run_study(config, output_dir)
        print_results(output_dir)


if __name__ == "__main__":
    main()
