"""Plans how long a study takes: times a few dozen steps of each arm on this machine."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from mixco_lightly.files import replace_file
from mixco_lightly.studies.plan import Options, Run, Study
from mixco_lightly.studies.published import name_arm

if TYPE_CHECKING:
    import torch

    from mixco_lightly.training.options import PretrainConfig

WARM_UP_STEPS = 10
TIMED_STEPS = 40
# Images on which the epochs of a probe are timed; 50 of its batches.
PROBE_IMAGES = 12_800


class Evaluation(NamedTuple):
    """What decides how long the evaluation of a backbone takes.

    Args:
        dataset: Dataset.
        data_dir: Its folder.
        image_size: Size of the images; None for the backbone's.
        epochs: Epochs of each protocol, by its name; 0 for those without.
        second_datasets: Protocols that need a second dataset, with its name and its folder.
    """

    dataset: str
    data_dir: str
    image_size: int | None
    epochs: tuple[tuple[str, int], ...]
    second_datasets: tuple[tuple[str, str | None, str | None], ...] = ()


class Minutes(NamedTuple):
    """How long the runs of an arm take.

    Args:
        group: Name of its group.
        arm: Name of the base or of the change.
        runs: Number of its runs.
        training: Minutes that a run trains.
        evaluation: Minutes that its backbone is evaluated, by the run and on further datasets.
    """

    group: str
    arm: str
    runs: int
    training: float
    evaluation: float

    @property
    def total(self) -> float:
        """Minutes of all its runs."""
        return self.runs * (self.training + self.evaluation)


class Plan(NamedTuple):
    """The minutes of a study.

    Args:
        device: The device on which they were measured.
        arms: The minutes of its arms.
    """

    device: str
    arms: list[Minutes]

    @property
    def total(self) -> float:
        """Minutes of the study."""
        return sum(arm.total for arm in self.arms)


def plan_minutes(study: Study, runs: Sequence[Run], output_dir: Path) -> Plan:
    """Reads the minutes of a study, or measures them, and writes minutes.json and minutes.md.

    Args:
        study: The study.
        runs: Its runs.
        output_dir: Its folder.

    Raises:
        ValueError: If an arm cannot run.
        OSError: If its data is missing.
    """
    path, content = output_dir / "minutes.json", json.loads(json.dumps(study.content()))
    before = json.loads(path.read_text()) if path.is_file() else {}
    if before.get("study") == content:
        return Plan(before["device"], [Minutes(*values) for values in before["arms"]])
    log = output_dir / "logs" / "minutes.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    plan = measure_apart(runs, log)
    head, rows = tabulate_minutes(plan)
    lines = [f"| {' | '.join(cells)} |" for cells in [head, *rows]]
    lines.insert(1, f"|{'---|' * len(head)}")
    with replace_file(output_dir / "minutes.md") as file:
        file.write(f"{chr(10).join(lines)}\n\n{describe_minutes(plan)}\n".encode())
    with replace_file(path) as file:
        record = {"study": content, "device": plan.device, "arms": plan.arms}
        file.write(f"{json.dumps(record, indent=1)}\n".encode())
    return plan


def measure_apart(runs: Sequence[Run], log: Path) -> Plan:
    """Measures in a process of its own, whose memory is free again when the runs start."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, _end_with, (os.getpid(),)) as pool:
        return pool.submit(measure_minutes, runs, log).result()


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent, which may be killed."""
    from mixco_lightly.training.processes import STUDY_PROCESS, end_with_parent

    os.environ[STUDY_PROCESS] = str(parent)
    end_with_parent()


def tabulate_minutes(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Returns the headings and the rows of a study's minutes, the last of which is their sum."""
    rows = [
        (name_arm(x.group, x.arm), x.runs, x.runs * x.training, x.runs * x.evaluation, x.total)
        for x in plan.arms
    ]
    rows.append(("total", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    head = ["planned minutes", "runs", "training", "evaluation", "all"]
    return head, [
        [name, str(runs), *(f"{minutes:,.1f}" for minutes in parts)] for name, runs, *parts in rows
    ]


def describe_minutes(plan: Plan) -> str:
    """Returns how to read the table."""
    return (
        f"Planned from {TIMED_STEPS} steps of each arm and parts of its evaluation, measured on "
        f"{plan.device}, for one run at a time. Starting the programs and kNN while training are "
        "not in it."
    )


def measure_minutes(runs: Sequence[Run], log: Path) -> Plan:
    """Measures how long each arm takes.

    Args:
        runs: All runs of a study.
        log: File that the output is appended to.
    """
    arms: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        arms.setdefault((run.group, run.arm), []).append(run)
    seconds: dict[Any, float] = {}
    minutes = []
    device = None
    for (group, arm), (first, *others) in arms.items():
        with log.open("a") as file, redirect_stdout(file):
            training, config, device = time_training(first)
            network = [config.backbone, config.stem, config.backbone_kwargs, config.image_size]
            evaluation = 0.0
            for measured in list_evaluations(first, config):
                # The arms of a group share their network, so one measurement is enough.
                key = json.dumps([measured, network])
                if key not in seconds:
                    seconds[key] = time_evaluation(config, measured, device)
                evaluation += seconds[key]
        minutes.append(Minutes(group, arm, 1 + len(others), training / 60, evaluation / 60))
    assert device is not None
    return Plan(name_device(device), minutes)


def time_training(run: Run) -> tuple[float, PretrainConfig, torch.device]:
    """Times the first steps of a run, in a folder that is removed.

    Returns:
        Seconds that all steps of the run take, its completed options, and its device.

    Raises:
        ValueError: If it cannot run.
        OSError: If its data is missing.
    """
    from mixco_lightly.training.command_line import check_options
    from mixco_lightly.training.pretraining import TRAINING_ERRORS, prepare
    from mixco_lightly.training.recipe import load_recipe
    from mixco_lightly.training.step_timer import StepTimer

    recipe = load_recipe(run.recipe)
    with TemporaryDirectory() as folder:
        options = {**run.options, "output_dir": folder, "knn_every_n_epochs": 0}
        prepared = prepare(recipe, check_options(recipe.config_class, options))
        timer = StepTimer(WARM_UP_STEPS, TIMED_STEPS)
        prepared.trainer.callbacks.append(timer)  # type: ignore[attr-defined]
        try:
            prepared.trainer.fit(prepared.model, datamodule=prepared.data)
        except TRAINING_ERRORS as error:
            raise ValueError(f"{run.label}: {error}") from error
        batches = prepared.trainer.num_training_batches
        device = prepared.trainer.strategy.root_device
    seconds = timer.seconds_per_step * batches * prepared.config.epochs
    return seconds, prepared.config, device


def list_evaluations(run: Run, config: PretrainConfig) -> list[Evaluation]:
    """Lists the evaluations of a run's backbone: its own, and those on further datasets."""
    from mixco_lightly.evaluation.protocols import FineTuning, PaperEvaluation

    def epochs_of(names: Sequence[str], options: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
        known = {
            "paper": options.get("paper_epochs", PaperEvaluation.epochs),
            "finetune": options.get("finetune_epochs", FineTuning.epochs),
        }
        return tuple((name, known.get(name, 0)) for name in names)

    assert config.dataset is not None
    assert config.data_dir is not None
    own = Evaluation(config.dataset, config.data_dir, None, epochs_of(config.protocol, {}))
    further = [
        Evaluation(
            options["dataset"][0],
            options["data_dir"][0],
            options.get("image_size"),
            epochs_of(options["protocol"], options),
            tuple(
                (name, options.get(f"{name}_dataset"), options.get(f"{name}_data_dir"))
                for name in ("shift", "ood")
                if name in options["protocol"]
            ),
        )
        for options in run.transfer.values()
    ]
    return [evaluation for evaluation in [own, *further] if evaluation.epochs]


def time_evaluation(config: PretrainConfig, evaluation: Evaluation, device: torch.device) -> float:
    """Times an evaluation, and of probes that train on images only the epochs of a part of them.

    Returns:
        Seconds of the whole evaluation.
    """
    from mixco_lightly.data.catalogue import create_train_test, get_dataset
    from mixco_lightly.evaluation.evaluator import extract, measure
    from mixco_lightly.evaluation.image_sets import create_image_sets, open_second_datasets
    from mixco_lightly.evaluation.protocols import create_protocols
    from mixco_lightly.training.resolve import create_initial_backbone

    assert config.image_size is not None
    size = evaluation.image_size or config.image_size
    backbone = create_initial_backbone(config, config.image_size, config.seed)
    images = create_train_test(
        evaluation.dataset, evaluation.data_dir, keep_decoded=config.keep_decoded
    )
    options: Options = {"num_workers": None, "device": device, "precision": "32-true"}
    start = time.perf_counter()
    facts = get_dataset(evaluation.dataset).facts
    protocols = create_protocols(knn_k=config.knn_k)
    chosen = [protocols[name] for name, _ in evaluation.epochs]
    others, _ = open_second_datasets({name: place for name, *place in evaluation.second_datasets})
    sets = create_image_sets(chosen, images[1], facts, others, seed=config.seed)
    extraction = extract(
        backbone, *images, facts, image_size=size, batch_size=256, further=sets, **options
    )
    seconds = time.perf_counter() - start
    part = min(1.0, PROBE_IMAGES / len(images[0]))

    def time_protocol(protocol: Any, label_fraction: float) -> float:
        start = time.perf_counter()
        list(measure(extraction, [protocol], label_fractions=[label_fraction], **options))
        return time.perf_counter() - start

    for name, epochs in evaluation.epochs:
        protocol: Any = protocols[name]
        if epochs:
            _, one, three = (
                time_protocol(replace(protocol, epochs=few), part) for few in (1, 1, 3)
            )
            seconds += max(0.0, three - one) / 2 / part * epochs
        else:
            seconds += time_protocol(protocol, 1.0)
    return seconds


def name_device(device: torch.device) -> str:
    """Returns the name of a GPU, or of the processor."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return platform.processor() or platform.machine()
