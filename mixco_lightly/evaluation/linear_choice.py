"""The choice of the linear probe's setting, on a held-out tenth of the training features."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def hold_out(targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Splits the training features into a part to train on and a part to choose a setting on.

    Args:
        targets: Class indices of shape (N,).
        seed: Seed of the split.

    Returns:
        The indices to train on and the indices that are held out, about a tenth of each class.
        Both are sorted. Each class keeps at least one index to train on.

    Raises:
        ValueError: If no class has two features.
    """
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    order = order[targets[order].argsort(stable=True)]  # by class, at random within it
    # The first of each class is kept, so the classifier knows every class.
    candidates = order[1:][targets[order].diff() == 0]
    if not len(candidates):
        raise ValueError(
            "To choose from several values a class must have two training features, but each "
            "has one."
        )
    held = torch.zeros(len(targets), dtype=torch.bool)
    held[candidates[::10]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def choose_setting(
    settings: list[dict[str, float]], trained: Iterable[tuple[Tensor, str]], targets: Tensor
) -> tuple[dict[str, float], str]:
    """Chooses the setting with the best top-1 on held-out features, the first of several.

    Args:
        settings: The settings, in the order of preference.
        trained: For each setting its scores of the held-out features, and a warning or "".
        targets: True classes of the held-out features.

    Returns:
        The setting, and a note that names it.
    """
    correct, warnings_of = [], []
    for setting, (scores, warning) in zip(settings, trained, strict=True):
        # Scores that are not finite have an argmax too, which may be right by chance.
        right = (scores.argmax(dim=1) == targets).sum().item()
        correct.append(right if scores.isfinite().all() else -1)
        if warning:
            warnings_of.append(f"{describe_setting(setting)} {warning}")
    chosen = settings[correct.index(max(correct))]
    note = (
        f"{describe_setting(chosen)} chosen from {len(settings)} on a tenth of the training "
        "features"
    )
    return chosen, note + (f" ({', '.join(warnings_of)})" if warnings_of else "")


def describe_setting(setting: dict[str, float]) -> str:
    """Formats a setting as name=value pairs."""
    return ", ".join(f"{name}={value}" for name, value in setting.items())
