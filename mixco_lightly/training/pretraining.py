"""One pretraining run: prepare, fit, finish.

A run writes under its output_dir: config.yaml, metrics.csv, checkpoints/last.ckpt (after every
epoch), model.safetensors, config.json, backbone.json, curves.png, summary.json and report.html.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger

import mixco_lightly.machine as machine
from mixco_lightly.data.images import ImageError
from mixco_lightly.data.mixers import Mixer
from mixco_lightly.data.own_code import name_function
from mixco_lightly.data.own_transform import create_own_transform
from mixco_lightly.data.transforms import create_pretrain_transform
from mixco_lightly.files import WriteError, replace_file
from mixco_lightly.training.data_module import PretrainData
from mixco_lightly.training.diagnosis import describe_chance
from mixco_lightly.training.errors import error_line, is_out_of_memory
from mixco_lightly.training.loggers import end_loggers, start_loggers
from mixco_lightly.training.method import Method
from mixco_lightly.training.metrics import open_metrics
from mixco_lightly.training.open_data import RunImages
from mixco_lightly.training.options import Config, MixingOptions, PretrainConfig
from mixco_lightly.training.processes import (
    EndTogether,
    OtherProcessError,
    prepare_on_rank_zero,
    print_on_rank_zero,
)
from mixco_lightly.training.progress import NonFiniteLossError, Speed, advise_after_divergence
from mixco_lightly.training.resolve import resolve
from mixco_lightly.training.run_folder import checkpoint_path, prepare_run, read_steps
from mixco_lightly.training.run_length import count_steps
from mixco_lightly.training.run_report import report_run
from mixco_lightly.training.summary import finish
from mixco_lightly.training.trainer import compile_parts, create_trainer

# What bad input and bad settings raise while a run trains; other errors are faults of the code.
TRAINING_ERRORS = (ImageError, NonFiniteLossError, WriteError)


@dataclass
class Run(Generic[Config]):
    """A run that is ready to train.

    Attributes:
        recipe: The recipe, specialised for its options.
        config: The completed options.
        images: The images.
        data: The batches.
        model: The model.
        trainer: Lightning's trainer.
        speed: Counts images and seconds.
        negatives: Number of negatives of a query, if the recipe counts them.
    """

    recipe: Method[Config]
    config: Config
    images: RunImages
    data: PretrainData
    model: pl.LightningModule
    trainer: pl.Trainer
    speed: Speed
    negatives: int | None

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.output_dir)

    @property
    def unmeasured(self) -> str:
        """Why nothing can be measured, or should not be; empty otherwise."""
        return self.images.unlabelled if self.config.protocol else "--protocol none"


def pretrain(recipe: Method[Config], config: Config) -> dict[str, Any]:
    """Pretrains a backbone, exports it, and compares its features with random initialisation.

    Args:
        recipe: The method.
        config: Its options.

    Returns:
        What summary.json has; nothing in the processes beside the first.

    Raises:
        ValueError: If options do not go together.
        OSError: If data is missing or a file cannot be written.
        ImageError: If an image is broken.
        NonFiniteLossError: If the loss is NaN or infinite.
    """
    run = prepare(recipe, config)
    fit(run)
    return measure_and_write(run)


def prepare(recipe: Method[Config], config: Config) -> Run[Config]:
    """Completes the options, opens the data, creates model and trainer, and begins the folder."""
    config = adopt_own_code(recipe, config)
    if recipe.check is not None:
        config = recipe.check(config)
    config, backbone, images = resolve(config)
    if recipe.specialise is not None:
        recipe = recipe.specialise(recipe, config, getattr(images.train, "classes", []))
    if recipe.needs_labels and images.unlabelled:
        raise ValueError(
            f"{recipe.method} trains with labels, and {images.unlabelled}: add the folders, or "
            "choose a method without labels."
        )
    if machine.runs_on_cpu(config.accelerator):
        machine.keep_freed_memory()
    data = create_data(recipe, config, images)
    steps_per_epoch = config.steps_per_epoch or count_steps(len(data.part), config)
    # Convolutions are faster in this layout, on CPUs and, in half precision, on GPUs.
    model = recipe.create_model(backbone, config).to(memory_format=torch.channels_last)
    passed_on = getattr(model, "optimizer", None)
    if isinstance(passed_on, str) and passed_on != config.optimizer:
        raise ValueError(
            f"{recipe.method} does not pass --optimizer {config.optimizer} on to its model: pass "
            "it **optimiser_arguments(config) in create_model, or give --optimizer sgd."
        )
    if config.compile:
        compile_parts(model)
    speed = Speed()
    folder, checkpoint = Path(config.output_dir), checkpoint_path(Path(config.output_dir))
    negatives = None if recipe.count_negatives is None else recipe.count_negatives(config)
    is_measured = bool(config.protocol) and not images.unlabelled
    trainer = create_trainer(
        config, folder, speed, steps_per_epoch, images if is_measured else None, negatives
    )

    loggers: list[Logger] = []  # of the first process

    def prepare_folder() -> None:
        prepare_run(folder, asdict(config), config.resume, config.overwrite)
        steps = read_steps(checkpoint, asdict(config)) if config.resume else 0
        if images.broken:
            with replace_file(folder / "broken_images.txt") as file:
                file.write("".join(f"{line}\n" for line in images.broken.values()).encode())
        loggers.extend(start_loggers(config, recipe.method, steps))

    prepare_on_rank_zero(trainer, prepare_folder)
    metrics = open_metrics(folder, read_steps(checkpoint) if config.resume else 0)
    trainer.loggers = [metrics, *loggers]
    run = Run(recipe, config, images, data, model, trainer, speed, negatives)
    announce(run, backbone.stem)
    return run


def adopt_own_code(recipe: Method[Config], config: Config) -> Config:
    """Writes a recipe's own functions into the options that could name them, unless they are set.

    So a run records them, and evaluate.py and a resumed run find them.
    """
    if recipe.dataset is not None:
        name = name_function(recipe.dataset)
        config = replace(config, dataset=config.dataset or name)
    if recipe.transform is not None and not isinstance(recipe.transform, str):
        name = name_function(recipe.transform)
        config = replace(config, transform=config.transform or name)
    return config


def create_mixer(config: PretrainConfig) -> Mixer:
    """Creates MixCo's mixer."""
    if not isinstance(config, MixingOptions):
        return Mixer.mixco()
    return Mixer.mixco(config.mixing, config.alpha)


def create_data(recipe: Method[Config], config: Config, images: RunImages) -> PretrainData:
    """Creates the batches."""
    assert config.image_size is not None
    assert config.num_workers is not None
    transform: Any
    if config.transform is not None:
        transform = create_own_transform(
            config.transform, images.facts, config.image_size, recipe.num_views
        )
    else:
        method = recipe.transform or ("moco" if recipe.method == "moco" else "simclr")
        transform = create_pretrain_transform(
            str(method),
            images.facts,
            config.image_size,
            config.min_scale,
            config.augmentations,
            recipe.num_views,
        )
    # A method without the option, such as i-Mix, always mixes.
    is_mixed = getattr(config, "mix_weight", 1.0) > 0
    return PretrainData(
        images.train,
        transform,
        on_device=config.augment == "device",
        mixed_views=recipe.mixed_views if is_mixed else (),
        mixer=(recipe.create_mixer or create_mixer)(config),
        train_fraction=config.train_fraction,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        seed=config.seed,
        mix_probability=getattr(config, "mix_probability", 1.0),
        max_broken_images=config.max_broken_images,
        broken_list=Path(config.output_dir) / "broken_images.txt",
    )


def announce(run: Run[Config], stem: str) -> None:
    """Prints what the run is, and what it leaves out."""
    config, images = run.config, run.images
    mixing = (
        f"{config.mixing}, mix_weight {config.mix_weight:g}, "
        if isinstance(config, MixingOptions)
        else ""
    )
    number = f"{len(run.data.part):,}" if run.data.stream is None else "a stream of"
    print_on_rank_zero(
        f"{run.recipe.method} on {config.dataset}: {number} images of "
        f"{config.image_size} pixels, {config.backbone} (stem {stem}), {config.length}, "
        f"{mixing}seed {config.seed}, precision {config.precision}, "
        f"augmented by {config.augment} -> {run.folder}"
    )
    if run.negatives is not None:
        print_on_rank_zero(f"Chance level of the contrast term: {describe_chance(run.negatives)}.")
    if images.broken:
        print_on_rank_zero(
            f"{len(images.broken):,} broken images are left out: {run.folder / 'broken_images.txt'}"
        )
    if run.data.stream is not None:
        readers = config.num_processes * max(run.data.num_workers, 1)
        if line := run.data.stream.describe_reading(readers):
            print_on_rank_zero(line)
    if run.unmeasured:
        print_on_rank_zero(
            f"No kNN while training and no probes at the end: {run.unmeasured}. "
            "mixco-lightly evaluate measures the backbone on labelled images afterwards."
        )


def fit(run: Run[Config], started_as: str = "") -> None:
    """Trains. An error that ends a run of several processes ends all of them.

    Args:
        run: The run.
        started_as: The command, to say how to resume a run that is stopped.
    """
    trainer, checkpoint = run.trainer, checkpoint_path(run.folder)

    def name_step(error: BaseException) -> BaseException:
        if not isinstance(error, FloatingPointError):  # the queue's, which does not know the run
            return error
        return NonFiniteLossError(
            f"{error} It was step {trainer.global_step + 1} of the run (process "
            f"{trainer.global_rank}). {advise_after_divergence(trainer)}"
        )

    def describe(error: BaseException) -> str | None:
        """Returns the line for an error, or None for an unexpected one."""
        if isinstance(error, OtherProcessError):
            return ""
        error = name_step(error)
        is_expected = isinstance(error, TRAINING_ERRORS) or is_out_of_memory(error)
        return error_line(error) if is_expected else None

    def say_stopped() -> None:
        if checkpoint.is_file():
            options = f"--config {shlex.quote(str(run.folder / 'config.yaml'))} --resume"
            how = f"{started_as} {options}".lstrip()
            print_on_rank_zero(
                f"Stopped after {trainer.current_epoch} epochs. Go on with:\n  {how}"
            )

    # A list of Lightning's, in the order that the callbacks are called in.
    trainer.callbacks.append(  # type: ignore[attr-defined]
        EndTogether(trainer, run.folder, describe, say_stopped)
    )
    try:
        trainer.fit(
            run.model,
            datamodule=run.data,
            ckpt_path=str(checkpoint) if run.config.resume else None,
            weights_only=True,
        )
    except SystemExit:  # Lightning's after Ctrl-C
        say_stopped()
        if not checkpoint.is_file():
            print_on_rank_zero(
                f"Stopped before {run.folder} had a checkpoint. Start again with --overwrite."
            )
        raise
    except Exception as error:
        if describe(error) is not None:
            say_stopped()
        named = name_step(error)
        raise named from (None if named is error else error)
    if run.data.stream is not None and (run.folder / "broken_images.txt").is_file():
        print_on_rank_zero(
            f"Broken images are left out of the stream: {run.folder / 'broken_images.txt'}"
        )


def measure_and_write(run: Run[Config], started_as: str = "") -> dict[str, Any]:
    """Measures and exports the backbone in the first process, and writes summary and report.

    Args:
        run: The run.
        started_as: The command, to say in the report how to repeat the run.
    """
    if not run.trainer.is_global_zero:
        return {}
    finished = finish(
        run.recipe,
        run.config,
        run.images,
        run.model,
        run.speed,
        run.trainer.strategy.root_device,
        run.negatives,
        is_measured=not run.unmeasured,
    )
    end_loggers(run.trainer.loggers, finished.summary, run.trainer.global_step - 1)
    if run.config.report:
        report_run(run, finished, started_as)
    return finished.summary
