"""Figures that others have published, to stand beside those of a study."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_KEYS = {"source", "epochs", "values"}
UNKNOWN = "unknown"


def name_arm(group: str, arm: str) -> str:
    """Returns how an arm is named outside its table.

    Examples:
        >>> from mixco_lightly.studies.published import name_arm
        >>> name_arm("SimCLR", "MixCo"), name_arm("", "MixCo")
        ('SimCLR: MixCo', 'MixCo')
    """
    return f"{group}: {arm}" if group else arm


def check_published(
    published: Mapping[str, Any], arms: Collection[str], figures: Collection[str]
) -> None:
    """Checks the published figures of a study.

    Args:
        published: For each figure: source, a text; values, a number for each arm for which one is
            known; and epochs, those of the published figures, if they are known.
        arms: The study's arms, as :func:`name_arm` names them.
        figures: The figures that its table can have.

    Raises:
        ValueError: If something else is there, or a source is missing.
    """
    for figure, block in published.items():
        place = f"published, {figure}"
        if figure not in figures:
            raise ValueError(f"{place}: there is no such figure: choose from {_list(figures)}.")
        if not isinstance(block, dict) or not block.keys() <= _KEYS:
            raise ValueError(f"{place} must have source, values and epochs, got {block!r}.")
        if not isinstance(block.get("source"), str) or not block["source"].strip():
            raise ValueError(f"{place} needs a source: say in words where the figures are from.")
        values = block.get("values", {})
        if not isinstance(values, dict):
            raise ValueError(f"{place}: values must be a mapping of arms, got {values!r}.")
        for arm, value in values.items():
            if arm not in arms:
                raise ValueError(f"{place}: there is no arm {arm!r}: choose from {_list(arms)}.")
            if type(value) not in (int, float):
                raise ValueError(
                    f"{place}: the figure of {arm} must be a number, got {value!r}; leave out one "
                    "that is unknown."
                )
        if type(block.get("epochs", 1)) is not int:
            raise ValueError(
                f"{place}: epochs must be a whole number, got {block['epochs']!r}; leave it out if "
                "it is unknown."
            )


def published_heading(block: Mapping[str, Any], scale: float) -> str:
    """Returns the heading of a column of published figures.

    Examples:
        >>> from mixco_lightly.studies.published import published_heading
        >>> published_heading({"epochs": 100}, scale=1), published_heading({"epochs": 100}, 0.1)
        ('paper', 'paper, 100 epochs')
    """
    if scale == 1:
        return "paper"
    return f"paper, {block['epochs']} epochs" if "epochs" in block else "paper, all epochs"


def published_cell(block: Mapping[str, Any], group: str, arm: str) -> str:
    """Returns the published figure of an arm as the table has it."""
    value = block.get("values", {}).get(name_arm(group, arm))
    return UNKNOWN if value is None else f"{value:.2f}"


def _list(names: Collection[str]) -> str:
    return ", ".join(names)
