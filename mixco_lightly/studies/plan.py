"""Plans a study: lists its runs, and checks that each of them can run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from mixco_lightly.studies.figures import FIGURES, FURTHER, SPEED, transfer_heading
from mixco_lightly.studies.published import check_published, name_arm
from mixco_lightly.studies.scale import scale_epochs
from mixco_lightly.training.command_line import check_options
from mixco_lightly.training.option_files import describe_unknown
from mixco_lightly.training.option_types import NonNegativeInt, PositiveFloat
from mixco_lightly.training.options import options_of_use

Options = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What a study compares.

    Args:
        recipe: Recipe of the runs: moco, simclr or selfcon; base, changes and groups may name
            another one.
        base: Options of the base.
        changes: For each change, by name, the options that differ from the base. If a change names
            another recipe, null leaves out an option of the base which that recipe does not have.
        groups: For each group, by name, the options that differ from the base, in the group's base
            and changes alike. Default: a single group.
        transfer: Datasets to evaluate each finished backbone on, by name: options of evaluate.py
            (dataset, data_dir and so on). A group with an option transfer uses only the datasets
            named there.
        base_name: Name of the base in tables.
        seeds: Seeds of the runs; the comparison is paired by seed.
        question: Question that the study answers; the title of its table.
        figures: Accuracies in the table, such as linear_top1, and images_per_second. Default: all
            accuracies. Choose settings by held_out_knn_top1, and show nothing else in a study that
            chooses.
        data_root: Folder that contains every data_dir of the study.
        published: Published figures to show beside the measured ones. For each figure, by its name
            or, with transfer, its heading: source, in words; values, a number for each arm
            (GROUP: ARM, or ARM without groups) where one is known; epochs, those it is of.
        equal_compute: For an arm whose step costs more than the base's, the arm with as many more
            epochs. The table compares the two as well.
        scale: What the epochs of all runs and evaluations are multiplied by. The folder's name and
            the table's heading then have it.
    """

    recipe: str = "moco"
    base: Options = field(default_factory=dict)
    changes: dict[str, Options] = field(default_factory=dict)
    groups: dict[str, Options] = field(default_factory=dict)
    transfer: dict[str, Options] = field(default_factory=dict)
    base_name: str = "plain"
    seeds: list[NonNegativeInt] = field(default_factory=lambda: [0, 1, 2])
    question: str = ""
    figures: list[str] = field(default_factory=list)
    data_root: str = "."
    published: dict[str, Options] = field(default_factory=dict)
    equal_compute: dict[str, str] = field(default_factory=dict)
    scale: PositiveFloat = 1.0

    def content(self) -> Options:
        """Returns what decides the runs and the table, as results.json records it."""
        # The question is recorded beside it, and data may move.
        names = [option.name for option in fields(Study)]
        values = {name: getattr(self, name) for name in names}
        return {
            name: value
            for name, value in values.items()
            if value and name not in ("question", "data_root") and (name, value) != ("scale", 1)
        }


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Args:
        group: Name of its group.
        arm: Name of the base or of the change.
        recipe: Recipe that runs.
        options: All options that the study gives the recipe, with the seed.
        folder: Output folder.
        transfer: Options of evaluate.py for each further dataset, by its name.
    """

    group: str
    arm: str
    recipe: str
    options: Options
    folder: Path
    transfer: dict[str, Options] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The run's name in messages."""
        return f"{name_arm(self.group, self.arm)}, seed {self.options['seed']}"

    def transfer_folder(self, name: str) -> Path:
        """Returns the folder of the evaluation on a further dataset."""
        return self.folder / "transfer" / folder_name(name)


class _Arm(NamedTuple):
    """What the runs of all seeds share."""

    group: str
    name: str
    recipe: str
    options: Options
    transfer: dict[str, Options]


def folder_name(name: str) -> str:
    """Returns a name as the name of a folder; no name leads out of the study's folder.

    Examples:
        >>> from mixco_lightly.studies.plan import folder_name
        >>> folder_name("MixCo, alpha 0.5")
        'mixco-alpha-0.5'
        >>> folder_name("../..")
        'all'
    """
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "all"


def plan_runs(
    study: Study,
    output_dir: Path,
    config_classes: Mapping[str, type[Any]],
    evaluate_class: type[Any],
) -> list[Run]:
    """Lists all runs of a study, seed by seed, so that whole comparisons finish early.

    Args:
        study: The study.
        output_dir: Its folder; each run has a folder of its own in it.
        config_classes: The class of options of each recipe, by the recipe's name.
        evaluate_class: The class of options of evaluate.py.

    Raises:
        ValueError: If there is nothing to compare, if names collide, if two arms are the same runs,
            if a figure does not exist, or if a recipe does not know an option or its value.
    """
    _check_study(study)
    transfer = _plan_transfer(study, evaluate_class)
    arms = _plan_arms(study, transfer, config_classes)
    folders = [output_dir / folder_name(arm.group) / folder_name(arm.name) for arm in arms]
    if len(set(folders)) < len(folders):
        raise ValueError(
            "Two groups or changes differ only in characters that no folder can have: rename one."
        )
    _check_arms(arms, config_classes)
    headings = [
        transfer_heading(protocol, name)
        for name, options in transfer.items()
        for protocol in options["protocol"]
    ]
    names = [name_arm(arm.group, arm.name) for arm in arms]
    check_published(study.published, names, [*FIGURES, *headings])
    return [
        Run(
            group=arm.group,
            arm=arm.name,
            recipe=arm.recipe,
            options={**arm.options, "seed": seed},
            folder=folder / f"seed-{seed}",
            transfer=arm.transfer,
        )
        for seed in study.seeds
        for arm, folder in zip(arms, folders, strict=True)
    ]


def _check_study(study: Study) -> None:
    if not study.base or not study.changes:
        raise ValueError("A study needs a base and at least one change: give --config FILE.yaml.")
    if study.base_name in study.changes:
        raise ValueError(
            f"The base and a change are both named {study.base_name!r}: rename one of them."
        )
    if not study.seeds:
        raise ValueError("A study needs at least one seed: give --seeds.")
    if len(set(study.seeds)) < len(study.seeds):
        raise ValueError(f"A seed is named twice in {study.seeds}: name each seed once.")
    arms = [study.base_name, *study.changes]
    for pair in study.equal_compute.items():
        if unknown := set(pair) - set(arms):
            raise ValueError(
                f"equal_compute: there is no arm {unknown.pop()!r}: choose from {', '.join(arms)}."
            )
        if pair[0] == pair[1]:
            raise ValueError(f"equal_compute: {pair[0]!r} is compared with itself.")
    known = [*FIGURES, *FURTHER, SPEED]
    if unknown := set(study.figures) - set(known):
        raise ValueError(f"There is no figure {unknown.pop()!r}: choose from {', '.join(known)}.")


def _plan_arms(
    study: Study, transfer: Mapping[str, Options], config_classes: Mapping[str, type[Any]]
) -> list[_Arm]:
    """Combines the options of base, groups and changes; a change wins over a group."""
    changes: dict[str, Options] = {study.base_name: {}, **study.changes}
    arms = []
    checked: set[tuple[str, ...]] = set()
    for group, common in (study.groups or {"": {}}).items():
        for name, change in changes.items():
            options = {**study.base, **common, **change}
            recipe = options.pop("recipe", study.recipe)
            further = options.pop("transfer", list(transfer))
            # In lists: a value from a file may be one that cannot be hashed.
            if recipe not in list(config_classes):
                raise ValueError(
                    f"{name}: there is no recipe {recipe!r} to compare: choose from "
                    f"{', '.join(config_classes)}."
                )
            if own := options.keys() & {"output_dir", *options_of_use("command")}:
                raise ValueError(f"{name}: {own.pop()} is set by the study: remove it.")
            if not isinstance(further, list) or any(x not in list(transfer) for x in further):
                raise ValueError(
                    f"{f'{group} {name}'.strip()}: transfer {further} must be names of the study's "
                    f"transfer, {list(transfer)}."
                )
            known = {option.name for option in fields(config_classes[recipe])}
            left_out = {
                option
                for option in study.base.keys() | common.keys()
                if option not in known and change.get(option, "") is None
            }
            parts = {"base": study.base, f"group {group!r}": common, f"change {name!r}": change}
            for place, part in parts.items():
                if (place, recipe, *sorted(left_out)) not in checked:
                    part = {option: part[option] for option in part if option not in left_out}
                    _check_part(place, part, config_classes[recipe], recipe)
                    checked.add((place, recipe, *sorted(left_out)))
            options = {option: options[option] for option in options if option not in left_out}
            if options.keys() & {"dataset", "data_dir"}:  # without them a run uses the digits
                folder = options.get("data_dir", "data")
                options["data_dir"] = str(Path(study.data_root) / folder)
            options = scale_epochs(options, config_classes[recipe], study.scale)
            arms.append(_Arm(group, name, recipe, options, {x: transfer[x] for x in further}))
    return arms


def _check_part(place: str, part: Options, config_class: type[Any], recipe: str) -> None:
    """Checks the options in one place of a study's file against one of its recipes."""
    options = {name: value for name, value in part.items() if name not in ("recipe", "transfer")}
    _check_names(place, options, config_class, recipe)
    _check_values(place, options, config_class)


def _check_names(place: str, options: Options, config_class: type[Any], command: str) -> None:
    known = {option.name for option in fields(config_class)}
    unknown = [str(name) for name in options if name not in known]
    if unknown:
        described = describe_unknown(config_class, unknown, prefix="")
        raise ValueError(f"{place}: {command}.py has no option {described}.")


def _check_values(place: str, options: Options, config_class: type[Any]) -> None:
    try:
        check_options(config_class, options)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _check_arms(arms: Sequence[_Arm], config_classes: Mapping[str, type[Any]]) -> None:
    """Raises a ValueError if an arm named plain mixes, or if two arms of a group are the same."""
    seen: list[tuple[_Arm, Any]] = []
    for arm in arms:
        options = config_classes[arm.recipe](**arm.options)
        mix_weight = getattr(options, "mix_weight", 0)
        if folder_name(arm.name) == "plain" and mix_weight:
            raise ValueError(
                f"{arm.name!r} has mix_weight {mix_weight:g}, so it trains with MixCo: set "
                "mix_weight: 0, or choose another name."
            )
        for other, its_options in seen:
            if (arm.group, options, arm.transfer) == (other.group, its_options, other.transfer):
                where = f" in group {arm.group!r}" if arm.group else ""
                raise ValueError(
                    f"{arm.name!r} and {other.name!r} have the same options{where}, so they would "
                    "be the same runs: change an option of one of them. (An option that a study "
                    f"does not name has its default: mix_weight is {mix_weight:g} in both.)"
                )
        seen.append((arm, options))


def _plan_transfer(study: Study, evaluate_class: type[Any]) -> dict[str, Options]:
    """Returns the options of evaluate.py for each further dataset."""
    transfer = {}
    for name, given in study.transfer.items():
        place = f"transfer to {name}"
        _check_names(place, given, evaluate_class, "evaluate")
        for key in ("dataset", "data_dir"):
            if not isinstance(given.get(key, ""), str):
                raise ValueError(f"{place}: {key} must be a text, got {given[key]!r}.")
        options = {
            "protocol": ["torch", "knn"],
            **given,
            "data_dir": [str(Path(study.data_root) / given.get("data_dir", "data"))],
            "dataset": [given.get("dataset", "imagefolder")],
        }
        for key in ("shift_data_dir", "ood_data_dir"):
            if isinstance(given.get(key), str):
                options[key] = str(Path(study.data_root) / given[key])
        _check_values(place, options, evaluate_class)
        if "mutual-information" in options["protocol"]:
            raise ValueError(
                f"{place}: mutual-information is not an accuracy to compare: remove it."
            )
        transfer[name] = scale_epochs(options, evaluate_class, study.scale)
    if len({folder_name(name) for name in transfer}) < len(transfer):
        raise ValueError(
            "Two names of transfer differ only in characters that no folder can have: rename one."
        )
    return transfer
