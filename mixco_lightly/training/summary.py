"""The end of a run: export, curves, figures, summary.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch.utils.data import IterableDataset

from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.backbones.export import export_backbone, load_backbone
from mixco_lightly.backbones.multi_exit import MultiExitBackbone
from mixco_lightly.evaluation.evaluator import Extraction, evaluate_parts
from mixco_lightly.evaluation.figures import RANDOM_INIT, summarise
from mixco_lightly.evaluation.probe_result import ProbeResult
from mixco_lightly.evaluation.records import package_versions
from mixco_lightly.evaluation.tables import Listing, list_results
from mixco_lightly.files import replace_file
from mixco_lightly.training.command_line import print_table
from mixco_lightly.training.diagnosis import find_below_random, find_chance
from mixco_lightly.training.method import EvaluateNetwork, Method
from mixco_lightly.training.metrics import draw_curves
from mixco_lightly.training.open_data import RunImages
from mixco_lightly.training.options import Config, MixingOptions, PretrainConfig
from mixco_lightly.training.progress import Speed
from mixco_lightly.training.resolve import create_initial_backbone

if TYPE_CHECKING:
    from mixco_lightly.training.method import Results


class Finished(NamedTuple):
    """What a run has at its end.

    Attributes:
        summary: What summary.json has.
        backbone: The backbone as it was exported.
        extraction: The features that were measured; None if nothing was.
        closing: The closing table.
        findings: What the figures say about the run.
    """

    summary: dict[str, Any]
    backbone: Backbone
    extraction: Extraction | None
    closing: Listing
    findings: list[str]


def finish(
    recipe: Method[Config],
    config: Config,
    images: RunImages,
    model: pl.LightningModule,
    speed: Speed,
    device: torch.device,
    negatives: int | None,
    *,
    is_measured: bool,
) -> Finished:
    """Exports the backbone, measures it beside its initialisation, and writes the summary.

    Args:
        recipe: The recipe.
        config: The completed options.
        images: The run's images.
        model: The trained model.
        speed: What the training took.
        device: Where to compute.
        negatives: Number of negatives of a query, if the recipe counts them.
        is_measured: Whether there is something to measure.

    Returns:
        The summary, and what it is based on.
    """
    run = Path(config.output_dir)
    export = partial(
        export_backbone,
        directory=run,
        mean=images.facts.mean,
        std=images.facts.std,
        training={"method": recipe.method, **asdict(config)},
    )
    export(model)
    draw_curves(run)

    # The exported backbone is measured; it is not compiled.
    backbone = load_backbone(run)
    own: Results = {}
    initial: Mapping[str, ProbeResult] = {}
    extraction = None
    if is_measured:
        evaluate = evaluator_of(config, images, device)
        own, extraction = measure(recipe, model, backbone, evaluate)
        if config.random_init:
            plain = replace(config, pretrained=False)
            start = create_initial_backbone(plain, backbone.image_size, config.seed)
            initial = evaluate(start)[0]["backbone"]
    summary: dict[str, Any] = {
        **summarise({**own, RANDOM_INIT: initial}),
        "images_per_second": speed.images / speed.seconds,
        "epochs": config.epochs,
        "seconds": speed.seconds,
        "peak_megabytes": speed.peak_megabytes,
        "versions": package_versions(),
    }
    export(backbone, metrics=summary)
    with replace_file(run / "summary.json") as file:
        file.write((json.dumps(summary, indent=2) + "\n").encode())
    closing = list_results("backbone", name_rows(recipe, config, own, initial))
    findings = find(config, own, initial, negatives)
    report(config, closing, findings, speed)
    return Finished(summary, backbone, extraction, closing, findings)


def evaluator_of(
    config: PretrainConfig, images: RunImages, device: torch.device
) -> EvaluateNetwork:
    """Returns the function that measures a network with the run's options.

    Precision and batch size are evaluate.py's defaults, whatever those of the training, so that
    evaluate.py finds the same figures.
    """
    assert config.image_size is not None
    assert config.num_workers is not None
    assert images.test is not None
    assert not isinstance(images.train, IterableDataset)
    return partial(
        evaluate_parts,
        images=images.train,
        test_images=images.test,
        facts=images.facts,
        protocols=config.protocol,
        image_size=config.image_size,
        num_workers=config.num_workers,
        knn_k=config.knn_k,
        seed=config.seed,
        device=device,
    )


def measure(
    recipe: Method[Config],
    model: pl.LightningModule,
    backbone: Backbone,
    evaluate: EvaluateNetwork,
) -> tuple[Results, Extraction]:
    """Measures the trained model's parts, the backbone first, and returns the features too."""
    extractions: list[Extraction] = []

    def evaluate_and_keep(network: Backbone | MultiExitBackbone) -> tuple[Results, Extraction]:
        results, extraction = evaluate(network)
        extractions.append(extraction)
        return results, extraction

    if recipe.measure is not None:
        return recipe.measure(model, backbone, evaluate_and_keep), extractions[0]
    return evaluate_and_keep(backbone)


def name_rows(
    recipe: Method[Any], config: PretrainConfig, own: Results, initial: Mapping[str, ProbeResult]
) -> Results:
    """Returns the results by the names that the closing table has for them."""
    names = {part: part.replace("_", " ") for part in own}
    if isinstance(config, MixingOptions) and recipe.measure is None:
        names["backbone"] = "MixCo" if config.mix_weight > 0 else "plain"
    rows = {f"{recipe.method}, {names[part]}": results for part, results in own.items()}
    return {**rows, **({"random initialisation": initial} if initial else {})}


def find(
    config: PretrainConfig,
    own: Results,
    initial: Mapping[str, ProbeResult],
    negatives: int | None,
) -> list[str]:
    """Returns what the figures say about the run: one line for each finding."""
    findings = []
    if negatives is not None:
        run = Path(config.output_dir)
        findings.append(find_chance(run, config.epochs, config.epochs, negatives))
    if initial:
        findings.append(find_below_random(own["backbone"], initial))
    return [line for line in findings if line]


def report(config: PretrainConfig, closing: Listing, findings: Sequence[str], speed: Speed) -> None:
    """Prints the figures as a table, and what they say about the run."""
    if closing.rows:
        title = f"{config.dataset}, test images, after {config.length}"
        print_table(title, closing.columns, closing.rows)
        print("".join(f"{note}\n" for note in closing.notes), end="")
    print("".join(f"{line}\n" for line in findings), end="")
    print(
        f"Trained for {timedelta(seconds=round(speed.seconds))} at "
        f"{speed.images / speed.seconds:,.0f} images/s, with at most "
        f"{speed.peak_megabytes / 1e3:,.1f} GB of memory. Everything is in {config.output_dir}."
    )
