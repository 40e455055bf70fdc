"""Compare single changes of a recipe over seeds: a table with intervals, and a plot.

    python recipes/compare.py --config recipes/presets/small-study.yaml --data_root data
    python recipes/compare.py --config recipes/presets/small-study.yaml --data_root data --resume

A study is a YAML file: a base (options of a recipe), named changes (options that differ from the
base) and, where the comparison is to be made several times, named groups (options that differ for
base and changes alike, such as another backbone). Base and changes run in every group with every
seed, one after another, and each run is an ordinary run of the recipe in a folder of its own. After
an interruption --resume skips what is finished and goes on with the run that was not.

In output_dir it writes, after every run: results.json (every run's options, figures and curve),
results.md (mean, standard deviation, paired difference to the base with its 95% interval, cost) and
results.png (accuracy over images seen and over seconds). All accuracies are those of the last
epoch. A run is what its options and its seed make it, so a study can be repeated; seconds are those
of the machine.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mixco_lightly.training.interrupts import end_in_one_line

    end_in_one_line()

import json
import sys
from pathlib import Path

from mixco_lightly.studies.compare import (
    CompareConfig,
    _notes,
    check_study,
    go_to_background,
    is_finished,
    plan,
    run_all,
    tabulate,
    write_report,
    write_results,
)
from mixco_lightly.training.command_line import parse_options, print_table
from mixco_lightly.training.errors import fail_in_one_line


def main() -> None:
    """Runs a study, or goes on with it."""
    with fail_in_one_line():
        for option, value in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
            if option == "--config" or option.startswith("--config="):
                check_study(Path(option.removeprefix("--config=") if "=" in option else value))
    config = parse_options(CompareConfig, __doc__)
    output_dir = Path(config.output_dir)
    with fail_in_one_line():
        if config.report:
            write_report(json.loads((output_dir / "results.json").read_text()), output_dir)
        else:
            runs = plan(config, output_dir)
            if output_dir.exists() and any(output_dir.iterdir()) and not config.resume:
                raise FileExistsError(
                    f"{output_dir} is not empty: add --resume to go on with its study, or choose "
                    "another --output_dir."
                )
            output_dir.mkdir(parents=True, exist_ok=True)
            for run in runs:
                is_finished(run)  # raises where a run in the folder is another one
            if config.background:
                go_to_background(output_dir)
                return
            failures = run_all(config, runs, output_dir)
            write_results(config, runs, output_dir)
            if failures:
                sys.exit("error: " + "\n".join(["runs failed:", *failures]))
    results = json.loads((output_dir / "results.json").read_text())
    print_table(results["question"], *tabulate(results))
    print(_notes(results))


if __name__ == "__main__":
    main()
