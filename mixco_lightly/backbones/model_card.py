"""The model card of an exported backbone, written from its description."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from mixco_lightly.backbones.description import read_config

# Options that say where files were on one machine, or how a command was called.
LOCAL_OPTIONS = {"data_dir", "output_dir", "download", "resume", "overwrite"}
_PROTOCOLS = {
    "linear_top1": "linear probe, top-1",
    "linear_top5": "linear probe, top-5",
    "sklearn_top1": "linear probe (scikit-learn), top-1",
    "knn_top1": "kNN, top-1",
    "paper_top1": "linear probe (the authors' schedule), top-1",
    "finetune_top1": "fine-tuned, top-1",
}


def create_model_card(
    directory: str | Path, repo_id: str | None = None, *, license: str | None = None
) -> str:
    """Writes the model card of an exported backbone in the Hub's Markdown.

    The card has what ``backbone.json`` records: the network, how to load it and feed it, the
    options of the training, and the figures with their protocol.

    Args:
        directory: Where :func:`mixco_lightly.export_backbone` wrote the backbone.
        repo_id: Its name on the Hub, for the examples. Default: the examples name the directory.
        license: Licence of the weights in the Hub's spelling. Default: the card states none.

    Returns:
        The card.

    Raises:
        ValueError: If the export is of an earlier version; and as for
            :func:`mixco_lightly.load_backbone`.

    Examples:
        >>> import tempfile
        >>> from mixco_lightly import create_backbone, export_backbone
        >>> from mixco_lightly.backbones.model_card import create_model_card
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     _ = export_backbone(create_backbone("test_vit", image_size=32), directory)
        ...     card = create_model_card(directory, "alice/tiny")
        >>> card.splitlines()[1], "timm.create_model('hf-hub:alice/tiny'" in card
        ('library_name: timm', True)
    """
    config = read_config(directory)
    if "differs_from_timm" not in config:
        raise ValueError(
            f"The export in {directory} is of an earlier version, which does not say whether timm "
            "loads it. Load it with load_backbone and export it again."
        )
    training, differences = config.get("training", {}), config["differs_from_timm"]
    method = training.get("method")
    header = ModelCardData(
        library_name="mixco-lightly" if differences else "timm",
        license=license,
        pipeline_tag="image-feature-extraction",
        tags=[
            "mixco-lightly",
            *(["timm"] if not differences else []),
            *([method] if method else []),
        ],
    )
    sections = [
        f"---\n{header.to_yaml()}\n---",
        f"# {repo_id.split('/')[-1] if repo_id else config['name']}",
        _introduce(config),
        "## Loading",
        _explain_loading(config, repo_id),
        "## Images",
        _explain_images(config),
        "## Training",
        _explain_training(training, config.get("metrics", {}).get("versions", {})),
        "## Figures",
        _list_figures(training, config.get("metrics", {})),
    ]
    return "\n\n".join(sections) + "\n"


def write_options(training: Mapping[str, Any]) -> str:
    """Writes the options of a run as a file for ``--config``, without those of one machine.

    Args:
        training: What an export records of the training.

    Returns:
        One option a line; empty if the export records none.
    """
    # JSON is YAML too.
    return "".join(
        f"{name}: {json.dumps(value)}\n"
        for name, value in training.items()
        if value is not None and name not in LOCAL_OPTIONS and name != "method"
    )


def list_figures(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Lists the accuracies of an export.

    Args:
        metrics: What an export records of its figures.

    Returns:
        For each, what it measures, the trained network's and the random network's, in percent.
    """
    return [
        (
            _PROTOCOLS.get(name, name),
            _percent(metrics[name]),
            _percent(metrics.get(f"random_init_{name}")),
        )
        for name in metrics
        if name.endswith(("_top1", "_top5")) and not name.startswith("random_init_")
    ]


def explain_protocol(training: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Says on which images and how the figures were measured.

    Args:
        training: What an export records of the training.
        metrics: What it records of its figures.

    Returns:
        The facts, in one line.
    """
    facts = [f"{training['dataset']}, test images" if "dataset" in training else "test images"]
    if any(name.startswith("knn") for name in metrics) and "knn_k" in training:
        facts.append(f"kNN with k = {training['knn_k']}")
    if "precision" in training:
        facts.append(f"trained in {training['precision']}, measured in float32")
    if "seed" in training:
        facts.append(f"one run with seed {training['seed']}")
    return "; ".join(facts)


def _introduce(config: Mapping[str, Any]) -> str:
    training, side = config.get("training", {}), config["image_size"]
    how = f", trained by `{training['method']}`" if "method" in training else ""
    where = f" on `{training['dataset']}`" if "dataset" in training else ""
    start = ", from timm's published weights" if training.get("pretrained") else ""
    return (
        f"A backbone: timm's `{config['name']}` without its head{how}{where}{start}. It maps "
        f"images of {side}x{side} pixels and {config['in_chans']} channels to "
        f"{config.get('feature_dim')} features."
    )


def _explain_loading(config: Mapping[str, Any], repo_id: str | None) -> str:
    differences = config["differs_from_timm"]
    here = f"hf-hub:{repo_id}" if repo_id else "DIRECTORY"
    for_timm = here if repo_id else f"local-dir:{here}"
    text = (
        "```python\nfrom mixco_lightly import load_backbone\n\n"
        f"backbone = load_backbone({here!r})\n"
        "features = backbone(backbone.transform(image).unsqueeze(0))\n```\n\n"
    )
    if differences:
        listed = "\n".join(f"- {difference}" for difference in differences)
        return (
            f"{text}timm alone cannot load it and raises an error, because the network is not "
            f"timm's published one:\n\n{listed}"
        )
    return (
        f"{text}timm loads the same network with the same features:\n\n```python\nimport timm\n\n"
        f"model = timm.create_model({for_timm!r}, pretrained=True, num_classes=0)\n```"
    )


def _explain_images(config: Mapping[str, Any]) -> str:
    mean, std = config.get("mean"), config.get("std")
    normalise = (
        f"normalise with mean {mean} and std {std}"
        if mean and std
        else ("normalise as in the training, which the export does not record")
    )
    side = config["image_size"]
    return (
        f"For evaluation, resize the shorter side to {config.get('resize') or side} pixels "
        f"(bilinear), crop {side}x{side} pixels from the centre, scale to [0, 1], and {normalise}."
    )


def _explain_training(training: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
    options = write_options(training)
    if not options:
        return "The export does not record it."
    method = training.get("method")
    text = f"The options of the run:\n\n```yaml\n{options}```"
    if method:
        command = f"mixco-lightly {method} --config options.yaml"
        text += f"\n\nSaved as `options.yaml`, they are those of `{command}`."
    if versions:
        listed = ", ".join(f"{package} {version}" for package, version in versions.items())
        text += f"\n\nVersions: {listed}."
    return text


def _list_figures(training: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    rows = [f"| {' | '.join(figure)} |" for figure in list_figures(metrics)]
    if not rows:
        return "The export records none."
    head = ["| frozen features | trained, % | random initialisation, % |", "|---|---|---|"]
    return "\n".join([*head, *rows, "", f"Protocol: {explain_protocol(training, metrics)}."])


def _percent(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, (int, float)) else "not measured"
