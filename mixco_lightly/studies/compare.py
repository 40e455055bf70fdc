"""Plans, runs and reports the comparison of single changes of a recipe over seeds."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Literal

import yaml
from moco import MoCoConfig
from selfcon import SelfConConfig
from simclr import SimCLRConfig

import mixco_lightly.machine as machine
from mixco_lightly.evaluation.evaluator import EvaluateConfig
from mixco_lightly.evaluation.records import read_report
from mixco_lightly.files import replace_file
from mixco_lightly.training.command_line import check_options
from mixco_lightly.training.option_files import describe_unknown
from mixco_lightly.training.option_types import NonNegativeInt, PositiveInt

RECIPES = {"moco": MoCoConfig, "simclr": SimCLRConfig, "selfcon": SelfConConfig}
# What the table compares: names in summary.json, and their headings.
FIGURES = {
    "linear_top1": "linear, top-1 %",
    "knn_top1": "kNN, top-1 %",
    "classifier_top1": "classifier, top-1 %",
    "subnetwork_linear_top1": "sub-network linear, top-1 %",
    "ensemble_linear_top1": "ensemble linear, top-1 %",
    # For choices, which the test images must not make.
    "held_out_knn_top1": "kNN on held-out training images, %",
}
TRANSFER_PROTOCOLS = {"torch": "linear", "knn": "kNN"}


@dataclass
class CompareConfig:
    """Options of a study.

    Args:
        recipe: Recipe of the runs; base, changes and groups may name another one.
        base: Options of the base.
        changes: For each change, by name, the options that differ from the base.
        groups: For each group, by name, the options that differ from the base, in the group's base
            and changes alike. Default: a single group.
        transfer: Other datasets to probe each backbone on, by name: options of evaluate.py
            (dataset, data_dir and so on). A group with an option transfer has those named there.
        base_name: Name of the base in tables.
        seeds: Seeds of the runs; the comparison is paired by seed.
        question: What the study is to answer; the title of its table.
        figures: Accuracies that the table has, such as linear_top1. Default: all. A choice is to be
            made by held_out_knn_top1 alone, and its study better shows nothing else.
        data_root: Folder that every data_dir of the study is in.
        output_dir: Folder of the study.
        jobs: Number of runs at a time, which share the processors.
        background: Whether to go on in a process of its own, with its output in
            output_dir/compare.log.
        resume: Whether to go on with the study in output_dir: what is finished is skipped.
        report: Whether only to write table and plot anew, from output_dir/results.json.
    """

    recipe: Literal["moco", "simclr", "selfcon"] = "moco"
    base: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    transfer: dict[str, dict[str, Any]] = field(default_factory=dict)
    base_name: str = "plain"
    seeds: list[NonNegativeInt] = field(default_factory=lambda: [0, 1, 2])
    question: str = ""
    figures: list[str] = field(default_factory=list)
    data_root: str = "."
    output_dir: str = "runs/study"
    jobs: PositiveInt = 1
    background: bool = False
    resume: bool = False
    report: bool = False


@dataclass
class Run:
    """One run of a study.

    Attributes:
        group: Name of its group.
        arm: Name of the base or of the change.
        recipe: Recipe that runs.
        options: All options that the study gives it, with its seed.
        folder: Where it runs.
        transfer: Options of evaluate.py for each further dataset, by its name.
    """

    group: str
    arm: str
    recipe: str
    options: dict[str, Any]
    folder: Path
    transfer: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"{f'{self.group}: ' if self.group else ''}{self.arm}, seed {self.options['seed']}"

    def transfer_folder(self, name: str) -> Path:
        """Where its evaluation on a further dataset is written."""
        return self.folder / "transfer" / _slug(name)


def check_study(path: Path) -> None:
    """Checks that the lists and mappings in a study's file are such.

    Raises:
        ValueError: If one of them is not; the message names its place in the file.
    """
    try:
        study = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return  # the parser reports it
    if not isinstance(study, dict):
        return
    expected = {
        "seeds": (int, "whole numbers, such as [0, 1, 2]"),
        "figures": (str, "names, such as [linear_top1]"),
    }
    for key, (kind, description) in expected.items():
        values = study.get(key, [])
        if not isinstance(values, list) or any(type(value) is not kind for value in values):
            raise ValueError(f"{path}: {key} must be a list of {description}, got {values!r}.")
    places = {"base": study.get("base", {})}
    for key in ("changes", "groups", "transfer"):
        named = study.get(key, {})
        places[key] = named
        if isinstance(named, dict):
            places |= {f"{key}, {name}": options for name, options in named.items()}
    for place, options in places.items():
        if not isinstance(options, dict):
            raise ValueError(f"{path}: {place} must be a mapping of names, got {options!r}.")


def plan(config: CompareConfig, output_dir: Path) -> list[Run]:
    """All runs of a study, seed by seed, so that every comparison has its first pair early.

    Raises:
        ValueError: If there is nothing to compare, if names collide, if two arms are the same runs,
            if there is no such figure, or if a recipe does not know an option or its value.
    """
    if not config.base or not config.changes:
        raise ValueError("A study needs a base and at least one change: give --config FILE.yaml.")
    if config.base_name in config.changes:
        raise ValueError(f"A change is named {config.base_name!r}, as is the base.")
    if len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"A seed is named twice in {config.seeds}.")
    if unknown := set(config.figures) - FIGURES.keys():
        raise ValueError(f"There is no figure {unknown.pop()!r}: choose from {', '.join(FIGURES)}.")
    transfer = check_transfer(config)
    arms: dict[str, dict[str, Any]] = {config.base_name: {}, **config.changes}
    runs = []
    checked: set[tuple[str, str]] = set()
    for seed in config.seeds:
        for group, common in (config.groups or {"": {}}).items():
            for arm, change in arms.items():
                options = {**config.base, **common, **change, "seed": seed}
                recipe = options.pop("recipe", config.recipe)
                further = options.pop("transfer", list(transfer))
                folder = output_dir / _slug(group) / _slug(arm) / f"seed-{seed}"
                if recipe not in list(RECIPES):
                    raise ValueError(f"{arm}: there is no recipe {recipe!r} to compare.")
                if own := options.keys() & {"output_dir", "resume", "overwrite"}:
                    raise ValueError(f"{arm}: {own.pop()} is the study's, leave it out.")
                if not isinstance(further, list) or any(x not in list(transfer) for x in further):
                    raise ValueError(
                        f"{group} {arm}: ".lstrip() + f"transfer {further} must be names of "
                        f"the study's transfer, {list(transfer)}."
                    )
                parts = {"base": config.base, f"group {group!r}": common, f"change {arm!r}": change}
                for place, part in parts.items():
                    if (place, recipe) not in checked:
                        _check_part(place, part, recipe)
                        checked.add((place, recipe))
                if options.keys() & {"dataset", "data_dir"}:  # else it is the digits
                    folder_name = options.get("data_dir", "data")
                    options["data_dir"] = str(Path(config.data_root) / folder_name)
                runs.append(
                    Run(group, arm, recipe, options, folder, {x: transfer[x] for x in further})
                )
    folders = [run.folder for run in runs]
    if len(set(folders)) < len(folders):
        raise ValueError("Two groups or changes differ only in characters that no folder can have.")
    _check_arms([run for run in runs if run.options["seed"] == config.seeds[0]])
    return runs


def _check_part(place: str, part: dict[str, Any], recipe: str) -> None:
    """Checks the options that a study's file has in one place, for one of its recipes."""
    options = {name: value for name, value in part.items() if name not in ("recipe", "transfer")}
    _check_names(place, options, RECIPES[recipe], recipe)
    try:
        check_options(RECIPES[recipe], options)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _check_names(place: str, options: dict[str, Any], kind: type[Any], recipe: str) -> None:
    known = {option.name for option in fields(kind)}
    unknown = [str(name) for name in options if name not in known]
    if unknown:
        described = describe_unknown(kind, unknown, prefix="")
        raise ValueError(f"{place}: {recipe}.py has no option {described}.")


def _check_arms(runs: Sequence[Run]) -> None:
    """Raises a ValueError if a plain arm mixes, or if two arms of a group are the same runs."""
    seen: list[tuple[Run, Any]] = []
    for run in runs:
        options = RECIPES[run.recipe](**run.options)
        if _slug(run.arm) == "plain" and options.mix_weight:
            raise ValueError(
                f"{run.arm!r} has mix_weight {options.mix_weight:g}, so it trains with MixCo: set "
                "mix_weight: 0, or choose another name."
            )
        for other, its_options in seen:
            if (run.group, options, run.transfer) == (other.group, its_options, other.transfer):
                where = f" in group {run.group!r}" if run.group else ""
                raise ValueError(
                    f"{run.arm!r} and {other.arm!r} have the same options{where}, so they would be "
                    "the same runs: change an option of one of them. (What a study does not name "
                    f"has its default: mix_weight is {options.mix_weight:g} in both.)"
                )
        seen.append((run, options))


def check_transfer(config: CompareConfig) -> dict[str, dict[str, Any]]:
    """Options of evaluate.py for each further dataset; ValueError if it does not know them."""
    transfer = {}
    for name, given in config.transfer.items():
        _check_names(f"transfer to {name}", given, EvaluateConfig, "evaluate")
        options = {"protocol": ["torch", "knn"], **given}
        for key in ("dataset", "data_dir"):
            if not isinstance(given.get(key, ""), str):
                raise ValueError(f"transfer to {name}: {key} must be a text, got {given[key]!r}.")
        options["data_dir"] = [str(Path(config.data_root) / options.get("data_dir", "data"))]
        options["dataset"] = [options.get("dataset", "imagefolder")]
        try:
            check_options(EvaluateConfig, options)
        except ValueError as error:
            raise ValueError(f"transfer to {name}: {error}") from error
        if "mutual-information" in options["protocol"]:
            raise ValueError(f"transfer to {name}: mutual-information is no accuracy to compare.")
        transfer[name] = options
    if len({_slug(name) for name in transfer}) < len(transfer):
        raise ValueError("Two names of transfer differ only in characters that no folder can have.")
    return transfer


def _slug(name: str) -> str:
    """A name as that of a folder."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "all"


def is_finished(run: Run) -> bool:
    """Whether a run has its summary.

    Raises:
        ValueError: If the folder's run has other options than the study.
    """
    path = run.folder / "config.yaml"
    if not path.is_file():
        return False
    before = yaml.safe_load(path.read_text()) or {}
    for name, value in run.options.items():
        # Data may have moved, and selfcon.py notes no exits for a method without sub-networks.
        if name == "data_dir" or (name == "exits" and before.get(name) == []):
            continue
        if before.get(name) != value:
            raise ValueError(
                f"The run in {run.folder} was made with {name} {before.get(name)}, the study says "
                f"{value}: choose another --output_dir, or delete that folder."
            )
    return (run.folder / "summary.json").is_file() and all(
        # They are written one after another.
        {record["protocol"] for record in read_report(run.transfer_folder(name))}
        >= set(options["protocol"])
        for name, options in run.transfer.items()
    )


def execute(run: Run, threads: int, log: Path) -> str:
    """Makes a run, or goes on with it, and its transfers; gives the last line of a failed one."""
    failure = ""
    if not (run.folder / "summary.json").is_file():
        failure = _train(run, threads, log)
    for name, options in run.transfer.items():
        # With --overwrite, because one that was interrupted may have left a part of its results.
        path = log.with_name(f"{log.stem}-{_slug(name)}.log")
        where = {"backbone_dir": [str(run.folder)], "output_dir": str(run.transfer_folder(name))}
        failure = failure or _run_program(
            "evaluate",
            {**options, **where, "seed": run.options["seed"]},
            "--overwrite",
            threads,
            path,
        )
    return failure


def _train(run: Run, threads: int, log: Path) -> str:
    can_resume = (run.folder / "checkpoints" / "last.ckpt").is_file()
    options = {**run.options, "output_dir": str(run.folder)}
    return _run_program(
        run.recipe, options, "--resume" if can_resume else "--overwrite", threads, log
    )


def _run_program(name: str, options: dict[str, Any], flag: str, threads: int, log: Path) -> str:
    """Runs a recipe with its output in a log; returns the log's last line if that fails.

    A run has as many threads as OMP_NUM_THREADS says, or ``threads`` if it is not set.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(options))
    script = Path(__file__).parents[2] / "recipes" / f"{name}.py"
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with log.open("a") as output:
        result = subprocess.run(
            [sys.executable, str(script), "--config", str(file), flag],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if result.returncode == 0:
        return ""
    lines = log.read_text().strip().splitlines()
    return f"exit code {result.returncode}: {lines[-1] if lines else 'no output'} (see {log})"


def collect(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What the finished runs have measured."""
    rows = []
    for run in runs:
        # The next run has started by now, and may be writing its options.
        if not (run.folder / "summary.json").is_file() or not is_finished(run):
            continue
        summary = json.loads((run.folder / "summary.json").read_text())
        trained = json.loads((run.folder / "backbone.json").read_text())["training"]
        images = summary["images_per_second"] * summary["seconds"]
        curve = read_curve(run.folder / "metrics.csv", summary["epochs"], images)
        rows.append(
            {
                "group": run.group,
                "arm": run.arm,
                "seed": run.options["seed"],
                "recipe": run.recipe,
                "options": {name: x for name, x in run.options.items() if name != "data_dir"},
                "images": round(images),
                "curve": curve,
                **({"held_out_knn_top1": curve[-1][1]} if curve else {}),
                "resolved": {
                    name: trained[name] for name in ("augment", "precision") if name in trained
                },
                **summary,
                **read_transfer(run),
            }
        )
    return rows


def read_transfer(run: Run) -> dict[str, float]:
    """Accuracies on the further datasets, by the headings of the table."""
    figures = {}
    for name in run.transfer:
        for record in read_report(run.transfer_folder(name)):
            protocol = TRANSFER_PROTOCOLS.get(record["protocol"], record["protocol"])
            figures[f"{protocol} on {name}, top-1 %"] = record["top1"]
    return figures


def read_curve(path: Path, epochs: int, images: float) -> list[list[float]]:
    """[images seen, accuracy] of the kNN evaluations while a run trained."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("knn_top1")]
    return [
        [round((float(row["epoch"]) + 1) / epochs * images), float(row["knn_top1"])] for row in rows
    ]


def paired(rows: Sequence[dict[str, Any]], figure: str, group: str, arms: Sequence[str]) -> Any:
    """Mean, standard deviation and 95% half-width of an arm minus the base, paired by seed.

    Student's t with one degree of freedom less than pairs. None where there is no pair; deviation
    and half-width are NaN where there is one only.
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
    if not differences:
        return None
    mean, n = statistics.mean(differences), len(differences)
    if n == 1:
        return mean, math.nan, math.nan
    from scipy.stats import t

    deviation = statistics.stdev(differences)
    return mean, deviation, float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)


def tabulate(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the headings and the rows of a study's table, from its results.json alone."""
    rows = results["runs"]
    headings = {
        **FIGURES,
        **{name: name for row in rows for name in row if name.endswith(", top-1 %")},
    }
    chosen = results["study"].get("figures") or FIGURES
    figures = [
        name
        for name in headings
        if any(name in row for row in rows) and (name in chosen or name not in FIGURES)
    ]
    # The base may not have a figure, as SupCon has no sub-network.
    base = results["base_name"]
    compared = [name for name in figures if any(name in x for x in rows if x["arm"] == base)]
    many = any(row["group"] for row in rows)
    head = [*(["group"] if many else []), "arm", "seeds"]
    for name in figures:
        head += [headings[name], *([f"minus {base} [95%]"] if name in compared else [])]
    head += ["images seen", "seconds"]
    lines = []
    for group, arm in dict.fromkeys((row["group"], row["arm"]) for row in rows):
        found = [row for row in rows if (row["group"], row["arm"]) == (group, arm)]
        cells = [*([group] if many else []), arm, str(len(found))]
        for name in figures:
            has_figure = name in found[0]
            cells.append(_mean_and_deviation([x[name] for x in found]) if has_figure else "")
            if name in compared:
                difference = paired(rows, name, group, (base, arm)) if arm != base else None
                cells.append(_difference_and_interval(difference))
        cells.append(f"{statistics.mean(row['images'] for row in found):,.0f}")
        cells.append(f"{statistics.mean(row['seconds'] for row in found):,.0f}")
        lines.append(cells)
    return head, lines


def render(results: dict[str, Any]) -> str:
    """The table of a study in Markdown, from what is in its results.json alone."""
    head, rows = tabulate(results)
    lines = [f"| {' | '.join(cells)} |" for cells in [head, *rows]]
    lines.insert(1, f"|{'---|' * len(head)}")
    title = f"## {results['question']}\n\n" if results["question"] else ""
    options = yaml.safe_dump(results["study"], sort_keys=False, allow_unicode=True, width=100)
    return f"{title}{chr(10).join(lines)}\n\n{_notes(results)}\n\n```yaml\n{options}```\n"


def _notes(results: dict[str, Any]) -> str:
    return (
        "Accuracy on the test images unless the heading says otherwise, last epoch: mean ± "
        "standard deviation over seeds. The difference to the base is paired by seed, with "
        "Student's t interval. Seconds are of the training, with "
        f"{results['jobs']} run(s) at a time on {results['processors']} processors."
    )


def _difference_and_interval(difference: tuple[float, float, float] | None) -> str:
    if difference is None:
        return ""
    mean, _, half = difference
    if math.isnan(half):
        return f"{mean:+.2f} (one pair)"
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def _mean_and_deviation(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def draw(results: dict[str, Any], file: IO[bytes]) -> None:
    """Draws kNN accuracy while training over images and over seconds, with bands over seeds."""
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
                xs, means, deviations = _band(members, unit)
                axis.plot(xs, means, color=f"C{index}", label=f"{arm} ({len(members)} seeds)")
                low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
                high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
                axis.fill_between(xs, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
        axes[0].set(xlabel="images seen", ylabel="kNN on held-out training images, %", title=group)
        axes[1].set(xlabel="seconds of training")
        axes[0].legend(fontsize=8)
        for axis in axes:
            axis.grid(alpha=0.3)
    figure.suptitle(results["question"])
    figure.savefig(file, dpi=110, format="png")


def _band(members: Sequence[dict[str, Any]], unit: str) -> tuple[list[float], ...]:
    """Mean and deviation over runs of the curve, at images or seconds."""
    points = list(zip(*(row["curve"] for row in members), strict=False))
    share = 1.0
    if unit == "seconds":
        share = statistics.mean(row["seconds"] / row["images"] for row in members)
    xs = [statistics.mean(point[0] for point in at) * share for at in points]
    means = [statistics.mean(point[1] for point in at) for at in points]
    deviations = [
        statistics.stdev([point[1] for point in at]) if len(at) > 1 else 0.0 for at in points
    ]
    return xs, means, deviations


def write_results(config: CompareConfig, runs: Sequence[Run], output_dir: Path) -> None:
    """Writes results.json, results.md and results.png, each in one move."""
    rows = collect(runs)
    if not rows:
        return
    names = ("recipe", "seeds", "base_name", "base", "changes", "groups", "transfer", "figures")
    study = {name: value for name, value in asdict(config).items() if name in names and value}
    results = {
        "question": config.question,
        "base_name": config.base_name,
        "jobs": config.jobs,
        "processors": machine.available_processors(),
        "planned": len(runs),
        "study": study,
        "runs": rows,
    }
    write_report(results, output_dir)


def write_report(results: dict[str, Any], output_dir: Path) -> None:
    """Writes the three files of a study from its results."""
    texts = {"results.json": json.dumps(results, indent=1) + "\n", "results.md": render(results)}
    for name, text in texts.items():
        with replace_file(output_dir / name) as file:
            file.write(text.encode())
    with replace_file(output_dir / "results.png") as file:
        draw(results, file)


def run_all(config: CompareConfig, runs: Sequence[Run], output_dir: Path) -> list[str]:
    """Runs what is not finished and reports after every run; gives what failed."""
    pending = [run for run in runs if not is_finished(run)]
    print(f"{len(runs)} runs, {len(runs) - len(pending)} of them finished -> {output_dir}")
    threads = max(1, machine.available_processors() // config.jobs)
    failures = []
    start = time.monotonic()
    with ThreadPoolExecutor(config.jobs) as pool:
        futures = {}
        for run in pending:
            log = output_dir / "logs" / f"{'-'.join(run.folder.relative_to(output_dir).parts)}.log"
            futures[pool.submit(execute, run, threads, log)] = run
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                run, failure = futures[future], future.result()
                left = (time.monotonic() - start) / done * (len(pending) - done)
                state = f"failed, {failure}" if failure else _line(run)
                print(
                    f"{done}/{len(pending)}  {run.label}: {state}  "
                    f"({timedelta(seconds=round(left))} left)",
                    flush=True,
                )
                if failure:
                    failures.append(f"{run.label}: {failure}")
                write_results(config, runs, output_dir)
        except KeyboardInterrupt:
            # The runs have had the same signal, and end at a checkpoint.
            pool.shutdown(cancel_futures=True)
            sys.exit("Stopped. Go on with the same command and --resume.")
        except BaseException:  # else the pool would first make all the runs
            pool.shutdown(cancel_futures=True)
            raise
    return failures


def _line(run: Run) -> str:
    summary = json.loads((run.folder / "summary.json").read_text())
    return ", ".join(f"{name} {summary[name]:.2f}" for name in FIGURES if name in summary)


def go_to_background(output_dir: Path) -> None:
    """Starts this command again in a session of its own."""
    arguments = [argument for argument in sys.argv if not argument.startswith("--background")]
    log = output_dir / "compare.log"
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments, *([] if "--resume" in arguments else ["--resume"])],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    print(f"Process {process.pid} goes on. Watch it with:\n  tail -f {log}")
