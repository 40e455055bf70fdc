"""Gathers what report.html shows of a run."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.data.batches import in_batches
from mixco_lightly.data.image_stream import ImageStream
from mixco_lightly.data.images import LabelledImages
from mixco_lightly.data.transforms import create_test_transform
from mixco_lightly.evaluation.evaluator import with_transform
from mixco_lightly.evaluation.parts import BACKBONE, extract_datasets
from mixco_lightly.evaluation.tables import name_dataset
from mixco_lightly.reports.charts import Chart, Line, draw_lines
from mixco_lightly.reports.embedding_map import MAX_MAP_IMAGES
from mixco_lightly.reports.mixing_effect import (
    MAX_PAIRS,
    draw_mixing,
    find_head,
    measure_mixing,
)
from mixco_lightly.reports.network_section import Embedded, create_section, embed
from mixco_lightly.reports.page import load_map_script, write_or_warn, write_page
from mixco_lightly.reports.pictures import to_pixels, to_uri
from mixco_lightly.training.metrics import read_curves
from mixco_lightly.training.options import MixingOptions, PretrainConfig, options_of_use
from mixco_lightly.training.resolve import create_initial_backbone
from mixco_lightly.training.summary import Finished

if TYPE_CHECKING:
    from mixco_lightly.training.pretraining import Run

REPORT = "report.html"
_MIXTURES = 12
# Training images among which neighbours are looked up, if the run has measured nothing.
_MAX_TRAIN_IMAGES = 2000


def report_run(run: Run[Any], finished: Finished, started_as: str) -> None:
    """Writes report.html and prints its path; an error is a line and does not fail the run.

    Args:
        run: The run.
        finished: What it has at its end.
        started_as: The command that started it; empty for a run from Python.
    """
    write_or_warn(
        run.folder / REPORT,
        "embedding map and neighbours",
        lambda: write_run_report(run, finished, started_as),
    )


def write_run_report(run: Run[Any], finished: Finished, started_as: str) -> None:
    """Writes report.html, which is the same for the same weights, options and images."""
    config = run.config
    pl.seed_everything(config.seed, verbose=False)
    embedded = embed_run(run, finished)
    mixtures, plain_views = picture_views(run)
    write_page(
        run.folder / REPORT,
        "run.html",
        title=f"{run.recipe.method} on {config.dataset}",
        facts=describe(run, finished.summary),
        closing=finished.closing,
        unmeasured=run.unmeasured,
        findings=finished.findings,
        curves=draw_curves(run),
        mixtures=mixtures,
        mixing_name=getattr(run.data.mixer, "mixing", "mixed"),
        plain_views=plain_views,
        mixing=show_mixing(run, finished.backbone),
        sections=[create_section(embedded, "backbone", config.seed)],
        command=write_repeat(run, started_as),
        options=options_of(config),
        versions=finished.summary["versions"],
        map_script=load_map_script(),
    )


def options_of(config: PretrainConfig) -> dict[str, Any]:
    """Returns the options that config.yaml has."""
    left_out = options_of_use("command")
    return {name: value for name, value in asdict(config).items() if name not in left_out}


def write_repeat(run: Run[Any], started_as: str) -> str:
    """Returns the command that repeats a run in another folder."""
    if not started_as:
        return ""
    config, folder = (str(run.folder / "config.yaml"), f"{run.folder}-again")
    return f"{started_as} --config {shlex.quote(config)} --output_dir {shlex.quote(folder)}"


def describe(run: Run[Any], summary: dict[str, Any]) -> dict[str, str]:
    """Returns what was run, and what it took."""
    config, images = run.config, run.images
    facts = {
        "method": run.recipe.method,
        "dataset": name_dataset(str(config.dataset), config.data_dir),
        "training images": f"{len(run.data.part):,}" if run.data.stream is None else "a stream",
    }
    if images.test is not None:
        facts["test images"] = f"{len(images.test):,}"
    if isinstance(config, MixingOptions):
        weight = f"{config.mixing}, weight {config.mix_weight:g}"
        facts["mixing"] = weight if config.mix_weight > 0 else "none: the plain baseline"
    return facts | {
        "backbone": f"{config.backbone} (stem {config.stem})",
        "views": f"{config.image_size} pixels, {config.augmentations} augmentations",
        "length": config.length,
        "batch": f"{config.batch_size} images"
        + (f" on each of {config.num_processes} devices" if config.num_processes > 1 else ""),
        "optimiser": f"{config.optimizer}, learning rate {config.learning_rate:g}",
        "seed": str(config.seed),
        "precision": config.precision,
        "training took": f"{timedelta(seconds=round(summary['seconds']))}, "
        f"{summary['images_per_second']:,.0f} images/s",
    }


def draw_curves(run: Run[Any]) -> list[Chart]:
    """Draws the metrics over the steps."""
    charts = []
    for title, unit, curves in read_curves(run.folder):
        lines = [
            Line(name, [step for step, _ in points], [value for _, value in points])
            for name, points in curves.items()
        ]
        charts.append(draw_lines(title, "step", unit, lines))
    return charts


def embed_run(run: Run[Any], finished: Finished) -> Embedded:
    """Returns the backbone's features, of a part of the images if the run has measured nothing."""
    config, images = run.config, run.images
    if finished.extraction is not None:
        return embed(BACKBONE, finished.extraction, images.facts, config.knn_k)
    wanted = [(images.train, MAX_MAP_IMAGES)]
    if images.test is not None:
        wanted = [(images.train, _MAX_TRAIN_IMAGES), (images.test, MAX_MAP_IMAGES)]
    chosen = [choose_images(run, each, most) for each, most in wanted]
    features = extract_datasets(
        finished.backbone,
        chosen,
        batch_size=256,
        num_workers=config.num_workers or 0,
        device=run.trainer.strategy.root_device,
        precision="32-true",
    )
    return Embedded(
        name=BACKBONE,
        train=features[0],
        test=features[-1],
        train_images=chosen[0],
        test_images=chosen[-1],
        facts=images.facts,
        classes=[] if images.test is None else images.test.classes,
        knn_k=config.knn_k,
    )


def choose_images(run: Run[Any], images: LabelledImages | IterableDataset[Any], most: int) -> Any:
    """Chooses images by the run's seed, of a stream the first, without augmentation."""
    assert run.config.image_size is not None
    transform = create_test_transform(run.images.facts, run.config.image_size)
    if isinstance(images, IterableDataset):
        return read_first(run, images, transform, most)
    generator = torch.Generator().manual_seed(run.config.seed)
    order = torch.randperm(len(images), generator=generator)[:most]
    return Subset(in_batches(with_transform(images, transform)), order.tolist())


def read_first(
    run: Run[Any], images: IterableDataset[Any], transform: Callable[..., Any], most: int
) -> list[Any]:
    """Reads the first images of a stream, and skips as many broken ones as the training may."""
    stream = ImageStream(images, transform, max_broken_images=run.config.max_broken_images)
    return list(islice(stream, most))


def picture_views(run: Run[Any]) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Makes views of training images, and mixes them as in training.

    Returns:
        Pictures of two views, their mixture and its weight; and pictures of the views of each
        image, if the run mixes none.
    """
    data, facts = run.data, run.images.facts
    part: Any = data.part
    samples: Any
    if isinstance(run.images.train, IterableDataset):
        assert data.stream is not None
        samples = read_first(run, run.images.train, data.stream.transform, 2 * _MIXTURES)
    else:
        samples = Subset(part, torch.randperm(len(part))[: 2 * _MIXTURES].tolist())
    # The views, or the images where views are made a batch at a time.
    images: Any = next(iter(DataLoader(samples, batch_size=len(samples))))[0]
    views: list[Tensor] = images
    if data.device_transform is not None:
        views = data.device_transform.to(images.device)(images)
    if not data.mixed_views:
        pictured = [[to_uri(pixel) for pixel in to_pixels(view, facts)] for view in views]
        return [], [list(each) for each in zip(*pictured, strict=True)][:_MIXTURES]
    view = views[data.mixed_views[0]]
    mixture = data.mixer(view)
    plain, mixed = to_pixels(view, facts), to_pixels(mixture.images, facts)
    columns = (mixture.first.tolist(), mixture.second.tolist(), mixture.lam.tolist())
    rows = zip(mixed, *columns, strict=True)
    return [
        {
            "first": to_uri(plain[first]),
            "second": to_uri(plain[second]),
            "mixed": to_uri(pixel),
            "lam": lam,
        }
        for pixel, first, second, lam in rows
    ][:_MIXTURES], []


def show_mixing(run: Run[Any], backbone: Backbone) -> dict[str, Any] | None:
    """Measures the projections of mixtures before and after training; None without a head."""
    config, images = run.config, run.images
    head = find_head(run.model)
    if head is None:
        return None
    assert config.image_size is not None
    start = run.recipe.create_model(
        create_initial_backbone(config, config.image_size, config.seed), config
    )
    chosen = choose_images(run, images.test or images.train, 2 * MAX_PAIRS)
    batch, _ = next(iter(DataLoader(chosen, batch_size=2 * MAX_PAIRS)))
    temperature = getattr(config, "mix_temperature", getattr(config, "temperature", 0.2))
    measure = partial(
        measure_mixing,
        images=batch,
        temperature=temperature,
        device=run.trainer.strategy.root_device,
    )
    start_head = find_head(start)
    assert start_head is not None
    before = measure(getattr(start, "backbone"), start_head)  # noqa: B009
    after = measure(backbone, head)
    return {
        "images": "training images" if images.test is None else "test images",
        "pairs": len(batch) // 2,
        "temperature": temperature,
        "before": before.distance,
        "after": after.distance,
        "charts": draw_mixing(before, after),
    }
