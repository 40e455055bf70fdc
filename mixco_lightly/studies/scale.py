"""Shortens the runs and evaluations of a study by one factor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Options = dict[str, Any]
# Options that count epochs in whole numbers, of a run and of an evaluation.
_EPOCHS = ("epochs", "paper_epochs", "finetune_epochs")


def scale_epochs(options: Mapping[str, Any], config_class: type[Any], scale: float) -> Options:
    """Returns options with a part of the epochs: of the training, its warm-up and its probes.

    Epochs are rounded up, so that at least one is left. The warm-up keeps its part of the training.

    Args:
        options: Options of a recipe or of evaluate.py.
        config_class: The class of these options, which has the default of what is not named.
        scale: What all epochs are multiplied by.

    Examples:
        >>> from mixco_lightly.studies.scale import scale_epochs
        >>> from mixco_lightly.training import MixCoConfig
        >>> scale_epochs({"epochs": 7, "warmup_epochs": 2}, MixCoConfig, 0.1)
        {'epochs': 1, 'warmup_epochs': 0.2}
    """
    scaled = dict(options)
    if scale == 1:
        return scaled
    for name in _EPOCHS:
        default = getattr(config_class, name, None)
        if (epochs := scaled.get(name, default)) is not None:
            # 0.07 * 100 is a little more than 7.
            scaled[name] = max(1, math.ceil(round(epochs * scale, 6)))
    if scaled.get("warmup_epochs") is not None:
        scaled["warmup_epochs"] = round(scaled["warmup_epochs"] * scale, 6)
    return scaled


def scaled_folder(output_dir: str | Path, scale: float) -> Path:
    """Returns the folder of a study, whose name ends with a scale other than 1.

    Examples:
        >>> from mixco_lightly.studies.scale import scaled_folder
        >>> scaled_folder("runs/study", 0.1).name
        'study-scale-0.1'
    """
    folder = Path(output_dir)
    return folder if scale == 1 else folder.with_name(f"{folder.name}-scale-{scale:g}")
