"""Checks the form of a study's file, before its options are parsed."""

from __future__ import annotations

from pathlib import Path


def check_study_file(path: Path) -> None:
    """Checks that the lists and mappings in a study's file are such.

    Other errors in the file are left to the parser of the options.

    Raises:
        ValueError: If one of them is not; the message names its place in the file.
    """
    import yaml

    try:
        study = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return
    if not isinstance(study, dict):
        return
    expected = {
        "seeds": (int, "whole numbers, such as [0, 1, 2]"),
        "figures": (str, "names, such as [linear_top1]"),
    }
    for key, (kind, description) in expected.items():
        values = study.get(key, [])
        if not isinstance(values, list) or any(type(value) is not kind for value in values):
            raise ValueError(f"{path}: {key} must be a list of {description}, got {values!r}.")
    pairs = study.get("equal_compute", {})
    if not isinstance(pairs, dict) or any(type(name) is not str for name in pairs.values()):
        raise ValueError(f"{path}: equal_compute must be a name for each arm, got {pairs!r}.")
    places = {"base": study.get("base", {})}
    for key in ("changes", "groups", "transfer", "published"):
        named = study.get(key, {})
        places[key] = named
        if isinstance(named, dict):
            places |= {f"{key}, {name}": options for name, options in named.items()}
    for place, options in places.items():
        if not isinstance(options, dict):
            raise ValueError(f"{path}: {place} must be a mapping of names, got {options!r}.")
