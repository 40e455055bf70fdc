"""What the commands that run studies share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixco_lightly.studies.minutes import Plan, describe_minutes, tabulate_minutes
from mixco_lightly.studies.plan import Run, Study, plan_runs
from mixco_lightly.studies.report import notes, read_results, tabulate, title_of
from mixco_lightly.training.command_line import print_table
from mixco_lightly.training.recipe_files import load_page, recipes_folder


def find_config_classes() -> tuple[dict[str, type[Any]], type[Any]]:
    """Returns the class of options of each recipe that can be compared, and that of evaluate.py."""
    pages = {path.stem: load_page(path) for path in sorted(recipes_folder().glob("*.py"))}
    recipes = {
        name: page.recipe.config_class for name, page in pages.items() if hasattr(page, "recipe")
    }
    return recipes, pages["evaluate"].EvaluateConfig


def begin_study(study: Study, output_dir: Path, resume: bool) -> list[Run]:
    """Plans the runs of a study and makes its folder.

    Args:
        study: The study.
        output_dir: Its folder.
        resume: Whether the folder may have runs of it already.

    Raises:
        ValueError: If the study cannot run, or if its folder has runs of another one.
        FileExistsError: If the folder is not empty and the study is not to be resumed.
    """
    from mixco_lightly.studies.results import is_finished

    runs = plan_runs(study, output_dir, *find_config_classes())
    if output_dir.exists() and any(output_dir.iterdir()) and not resume:
        raise FileExistsError(
            f"{output_dir} is not empty: add --resume to go on with its study, or choose another "
            "--output_dir."
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    for run in runs:
        is_finished(run)  # raises a ValueError if the folder has a run of another study
    return runs


def check_data(runs: Sequence[Run]) -> None:
    """Opens the test images of every dataset of a study, so that missing data is found at once.

    Raises:
        FileNotFoundError: If a dataset is not there; the message says what is expected.
    """
    from mixco_lightly.data.catalogue import create_dataset, find_dataset

    datasets = {
        (str(run.options.get("dataset", "digits")), str(run.options.get("data_dir", "data")))
        for run in runs
    }
    for run in runs:
        for options in run.transfer.values():
            datasets.add((options["dataset"][0], options["data_dir"][0]))
            for protocol in {"shift", "ood"} & set(options["protocol"]):
                folder = options.get(f"{protocol}_data_dir") or "data"
                name = options.get(f"{protocol}_dataset") or find_dataset(folder)[0]
                datasets.add((name, folder))
    for name, folder in sorted(datasets):
        try:
            create_dataset(name, folder, train=False)
        except FileNotFoundError as error:
            text = str(error).replace("Add --download to fetch it, or name another --data_dir.", "")
            raise FileNotFoundError(
                f"{text.strip()} Put it there, or name another --data_root; nothing is downloaded."
            ) from error


def print_minutes(title: str, plan: Plan) -> None:
    """Prints the planned minutes of a study."""
    print_table(title, *tabulate_minutes(plan))
    print(describe_minutes(plan))


def print_results(output_dir: Path) -> None:
    """Prints the table of a study, if a run has finished."""
    if not (output_dir / "results.json").is_file():
        return
    results = read_results(output_dir)
    print_table(title_of(results), *tabulate(results))
    print(notes(results))


def describe_stop(runs: Sequence[Run], minutes: float) -> str:
    """Returns what a slice of a study left to do; empty if it is finished."""
    from mixco_lightly.studies.results import is_finished

    finished = sum(map(is_finished, runs))
    if finished == len(runs):
        return ""
    return f"Stopped after {minutes:g} minutes: {finished} of {len(runs)} runs are finished."
