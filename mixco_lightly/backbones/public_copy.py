"""Copies of exports for others, in today's form and without the paths of one machine."""

from __future__ import annotations

import os
from pathlib import Path

from mixco_lightly.backbones.description import read_config
from mixco_lightly.backbones.export import export_backbone, load_backbone
from mixco_lightly.backbones.model_card import LOCAL_OPTIONS


def copy_for_others(directory: str | Path, target: str | Path) -> Path:
    """Loads an export and writes it again, which checks it and updates earlier formats.

    Args:
        directory: Where :func:`mixco_lightly.export_backbone` wrote it, or a run's output folder.
        target: Where to write the copy.

    Returns:
        The target, with ``model.safetensors``, ``config.json`` and ``backbone.json``.

    Raises:
        FileNotFoundError: If the directory has no export.
        ValueError: If a file of the export is damaged.
    """
    backbone, config = load_backbone(directory), read_config(directory)
    training = {k: v for k, v in config.get("training", {}).items() if k not in LOCAL_OPTIONS}
    for option in ("dataset", "transform"):  # FILE.py:FUNCTION may be their value
        if isinstance(training.get(option), str):
            training[option] = os.path.basename(training[option])
    return export_backbone(backbone, target, training=training, metrics=config.get("metrics"))
