"""Compare single changes of a recipe over seeds: a table with intervals, and a plot.

    python recipes/compare.py --config recipes/presets/small-study.yaml --data_root data
    python recipes/compare.py --config recipes/presets/small-study.yaml --data_root data --resume

A study is a YAML file. It has a base (options of a recipe), named changes (options that differ from
the base) and, to repeat the comparison under other conditions, named groups (options that differ
for base and changes alike, such as another backbone). Base and changes run in every group with
every seed. Each run is an ordinary run of the recipe in a folder of its own. After an interruption
--resume skips finished runs and resumes the others.

After every run these files are written to output_dir: results.json (every run's options, figures
and curve), results.md (mean, standard deviation, paired difference to the base with its 95%
interval, cost) and results.png (accuracy over images seen and over seconds). All accuracies are
those of the last epoch. Options and seed decide what a run learns, so a study can be repeated;
seconds depend on the machine.

    python recipes/compare.py --output_dir recipes/results --forest docs/results.png

draws the difference to plain training in every setting of the studies in a folder.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixco_lightly.studies import forest
from mixco_lightly.studies.plan import Study, check_study_file, plan_runs
from mixco_lightly.studies.report import notes, read_results, tabulate, write_report
from mixco_lightly.training.command_line import parse_options, print_table
from mixco_lightly.training.errors import fail_in_one_line
from mixco_lightly.training.interrupts import end_in_one_line
from mixco_lightly.training.option_types import PositiveInt
from mixco_lightly.training.recipe_files import load_page, recipes_folder


@dataclass(frozen=True)
class CompareConfig(Study):
    """How a study runs.

    Args:
        output_dir: Folder of the study.
        jobs: Number of runs at a time, which share the processors.
        background: Whether to continue in a process of its own, with its output in
            output_dir/compare.log.
        resume: Whether to resume the study in output_dir; finished runs are skipped.
        report: Whether only to write table and plot again, from output_dir/results.json.
        forest: PNG file. Only draws the differences to plain training there, of all studies whose
            folders are in output_dir.
    """

    output_dir: str = "runs/study"
    jobs: PositiveInt = 1
    background: bool = False
    resume: bool = False
    report: bool = False
    forest: str = ""


def find_config_classes() -> tuple[dict[str, type[Any]], type[Any]]:
    """Returns the class of options of each recipe that can be compared, and that of evaluate.py."""
    pages = {path.stem: load_page(path) for path in sorted(recipes_folder().glob("*.py"))}
    recipes = {
        name: page.recipe.config_class for name, page in pages.items() if hasattr(page, "recipe")
    }
    return recipes, pages["evaluate"].EvaluateConfig


def run_study(config: CompareConfig, output_dir: Path) -> None:
    """Makes or resumes the runs of a study; ends the program if it goes to the background."""
    from mixco_lightly.studies.execute import run_all, start_in_background, write_command
    from mixco_lightly.studies.results import is_finished, write_results

    runs = plan_runs(config, output_dir, *find_config_classes())
    if output_dir.exists() and any(output_dir.iterdir()) and not config.resume:
        raise FileExistsError(
            f"{output_dir} is not empty: add --resume to go on with its study, or choose another "
            "--output_dir."
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    for run in runs:
        is_finished(run)  # raises a ValueError if the folder has a run of another study
    if config.background:
        options = {**asdict(config), "background": False}
        log = output_dir / "compare.log"
        command = write_command(
            "compare", options, "--resume", output_dir / "logs" / "compare.yaml"
        )
        print(f"Process {start_in_background(command, log)} goes on. Watch it with:")
        print(f"  tail -f {log}")
        sys.exit()
    try:
        failures = run_all(config, runs, output_dir, config.jobs)
    except KeyboardInterrupt:
        sys.exit("Stopped. Go on with the same command and --resume.")
    write_results(config, runs, output_dir, config.jobs)
    if failures:
        sys.exit("error: " + "\n".join(["runs failed:", *failures]))


def main() -> None:
    """Runs a study, or goes on with it, and prints its table."""
    end_in_one_line()
    config = parse_options(CompareConfig, __doc__, check_study_file)
    output_dir = Path(config.output_dir)
    if config.forest:
        with fail_in_one_line():
            rows = forest.write_forest(output_dir, Path(config.forest))
        print_table(f"Differences to plain training -> {config.forest}", *forest.tabulate(rows))
        return
    with fail_in_one_line():
        if config.report:
            write_report(read_results(output_dir), output_dir)
        else:
            run_study(config, output_dir)
        results = read_results(output_dir)
    print_table(results["question"], *tabulate(results))
    print(notes(results))


if __name__ == "__main__":
    main()
