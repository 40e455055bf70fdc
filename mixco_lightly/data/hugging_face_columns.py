"""The columns of a Hugging Face dataset: which hold the images and the labels, and the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

# The names that most datasets of the Hub use, in the order of preference.
_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "fine_label", "labels", "target", "targets")
_LABEL_TYPES = ("int", "uint", "string", "large_string", "bool")


def import_datasets() -> Any:
    """Imports the package ``datasets``; raises a ValueError if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            "--dataset huggingface needs the package datasets, which is not installed: "
            "pip install 'mixco-lightly[huggingface]'"
        ) from error
    return datasets


def choose_image_column(rows: Dataset, given: str | None = None) -> str:
    """Returns the column of the images.

    Args:
        rows: The dataset.
        given: The column's name. Default: the only one of the type Image, else image or img.

    Raises:
        ValueError: If there is no such column, or it does not hold images.
    """
    found = given or _guess(rows, import_datasets().Image, _IMAGE_NAMES, _holds_images)
    if found is None:
        raise ValueError(
            f"No column is known to hold the images: name it by --image_column. {_describe(rows)}"
        )
    _check(rows, found, "image_column", "images", _holds_images)
    return found


def choose_label_column(rows: Dataset, given: str | None = None) -> str | None:
    """Returns the column of the labels; None if there is none.

    Args:
        rows: The dataset.
        given: The column's name. Default: the only one of the type ClassLabel, else the first of
            label, fine_label, labels, target and targets.

    Raises:
        ValueError: If there is no such column, or it does not hold one label for each image; or if
            there are several of the type ClassLabel, and none has a usual name.
    """
    kind = import_datasets().ClassLabel
    found = given or _guess(rows, kind, _LABEL_NAMES, _holds_labels)
    if found is not None:
        _check(rows, found, "label_column", "one label for each image", _holds_labels)
    elif any(isinstance(other, kind) for other in rows.features.values()):
        raise ValueError(
            f"Several columns hold labels: name one by --label_column. {_describe(rows)}"
        )
    return found


def keep_columns(rows: Dataset, image: str, label: str | None = None) -> Dataset:
    """Returns a dataset of these columns alone, with images as they are stored: not decoded."""
    datasets = import_datasets()
    columns = [image] if label is None else [image, label]
    rows = rows.with_format(None).select_columns(columns)
    if isinstance(rows.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    return rows


def has_values(rows: Dataset, label: str) -> bool:
    """Returns whether a split has labels: those of a contest's test images are missing or -1."""
    return label in rows.features and not all(x in (None, -1) for x in _read(rows, label))


def read_classes(train: Dataset, label: str) -> dict[Any, str]:
    """Returns the class name of each label: ClassLabel's, else the sorted values of the labels."""
    names: Sequence[str] | None = getattr(train.features[label], "names", None)
    if names is not None:
        return dict(enumerate(names))
    return {value: str(value) for value in sorted(set(_read(train, label)) - {None})}


def read_targets(rows: Dataset, label: str, classes: Mapping[Any, str], split: str) -> list[int]:
    """Returns the target of each row.

    Args:
        rows: The dataset.
        label: The column of the labels.
        classes: The class name of each label.
        split: The name of the dataset, for an error.

    Raises:
        ValueError: If a label is missing, or none of the classes.
    """
    targets = {value: target for target, value in enumerate(classes)}
    labels = _read(rows, label)
    for index, value in enumerate(labels):
        if value not in targets:
            raise ValueError(
                f"{split} row {index} has {value!r} as its {label}, which is none of the "
                f"{len(targets)} classes of the training images."
            )
    return [targets[value] for value in labels]


def _read(rows: Dataset, column: str) -> list[Any]:
    return list(rows.with_format(None).select_columns([column])[:][column])


def _guess(
    rows: Dataset, kind: type[Any], usual: Sequence[str], fits: Callable[[Any], bool]
) -> str | None:
    typed = [name for name, other in rows.features.items() if isinstance(other, kind)]
    if len(typed) == 1:
        return typed[0]
    fitting = typed or [name for name, other in rows.features.items() if fits(other)]
    return next((name for name in usual if name in fitting), None)


def _check(
    rows: Dataset, name: str, option: str, expected: str, fits: Callable[[Any], bool]
) -> None:
    if name not in rows.features:
        raise ValueError(f"--{option}: there is no column {name!r}. {_describe(rows)}")
    if not fits(rows.features[name]):
        raise ValueError(
            f"--{option}: the column {name!r} does not hold {expected}. {_describe(rows)}"
        )


def _holds_images(kind: Any) -> bool:
    if isinstance(kind, Mapping):
        return "bytes" in kind
    return isinstance(kind, import_datasets().Image) or "binary" in _dtype(kind)


def _holds_labels(kind: Any) -> bool:
    return _dtype(kind).startswith(_LABEL_TYPES)


def _dtype(kind: Any) -> str:
    return str(getattr(kind, "dtype", ""))


def _describe(rows: Dataset) -> str:
    kinds = (f"{name} ({_dtype(kind) or 'nested'})" for name, kind in rows.features.items())
    return f"The columns are {', '.join(kinds)}."
