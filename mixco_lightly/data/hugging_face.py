"""Hugging Face datasets: saved folders, folders of parquet files, and datasets of the Hub.

The package ``datasets``, which the extra ``huggingface`` installs, reads the tables. The images in
them are decoded here, as those of a folder are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from mixco_lightly.data.hugging_face_columns import (
    choose_image_column,
    choose_label_column,
    has_values,
    import_datasets,
    keep_columns,
    read_classes,
    read_targets,
)
from mixco_lightly.data.image_files import ImageFiles, describe_folder
from mixco_lightly.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DatasetSpec,
    ImageError,
    ImageFacts,
    open_image,
)

if TYPE_CHECKING:
    from datasets import Dataset

_TEST_SPLITS = ("test", "validation", "val")
# "train.parquet" and "test-00000-of-00001.parquet", but not "training.parquet".
_SPLIT_FILE = re.compile(r"(train|test|validation|val)(?![a-zA-Z]).*\.parquet")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class Splits(NamedTuple):
    """The parts of a dataset that a run reads.

    Attributes:
        train: The training images.
        test: The test images; None if the images have no labels.
        test_name: The name of the test images' split.
        image_column: The column of the images.
        label_column: The column of the labels; not used if the images have no labels.
    """

    train: Dataset
    test: Dataset | None
    test_name: str
    image_column: str
    label_column: str


def open_hugging_face(
    root: Path,
    *,
    train: bool,
    download: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageFiles:
    """Opens the training or the test images of a Hugging Face dataset.

    ``datasets`` maps a saved folder into memory. It converts parquet files to such a folder once,
    in its own cache, where it also keeps what it downloads; the variable HF_HOME moves it.

    Args:
        root: A folder that ``save_to_disk`` wrote; a folder with parquet files, in itself or in its
            folder ``data``, that are named as splits (``train-00000-of-00001.parquet``); or the
            name of a dataset on the Hub (``USER/NAME``).
        train: Whether to open the training images or the test images. These are the first of the
            splits test, validation and val that has labels.
        download: Not used; the name of a dataset on the Hub says enough.
        image_column: Column of the images. Default: the only one of the type Image, else image or
            img.
        label_column: Column of the labels. Default: the only one of the type ClassLabel, else the
            first of label, fine_label, labels, target and targets.

    Returns:
        The images. Without labels, or without test images that have them, the target of each is 0,
        and there are no classes. The classes are ClassLabel's, else the sorted values of the
        training images' labels.

    Raises:
        ValueError: If there is no such column, a label is missing or unknown, or ``datasets`` is
            not installed.
        FileNotFoundError: If there are no such images.
    """
    splits = _find_splits(root, image_column, label_column)
    name, rows = ("train", splits.train) if train else (splits.test_name, splits.test)
    if rows is None:
        raise FileNotFoundError(
            f"There are no test images with labels in {root}: expected a split test or validation."
        )
    classes: list[str] = []
    targets = [0] * len(rows)
    if splits.test is not None:
        names = read_classes(splits.train, splits.label_column)
        classes = list(names.values())
        targets = read_targets(rows, splits.label_column, names, name)
    files = [Path(file["filename"]) for file in rows.cache_files]
    folder = root if root.is_dir() or not files else files[0].parent
    config = import_datasets().config
    places = [root, Path(config.HF_CACHE_HOME), Path(config.HF_DATASETS_CACHE)]
    return ImageFiles(
        [(f"{folder / name} row {index}", target) for index, target in enumerate(targets)],
        classes,
        folder,
        name,
        loader=RowReader(keep_columns(rows, splits.image_column), places),
        sources=[str(path) for path in files],
    )


class RowReader:
    """Opens the image of a row, whose number its name ends with.

    A row holds the bytes of an image file, or else the path of one, which must be in one of the
    folders: whoever wrote the dataset does not decide which other files or addresses are read.

    Args:
        rows: A dataset of one column, images that are not decoded.
        folders: The folders that a path may be in.
    """

    def __init__(self, rows: Dataset, folders: Sequence[Path]) -> None:
        self.rows = rows
        self.folders = folders

    def __call__(self, name: str) -> Image.Image:
        """Opens an image as RGB.

        Raises:
            ImageError: If the row has no image, or one that cannot be opened.
        """
        (content,) = self.rows[int(name.rpartition(" ")[2])].values()
        path = None
        if isinstance(content, Mapping):
            content, path = content["bytes"], content.get("path")
        if content is not None:
            return open_image(name, content)
        if path is None:
            raise ImageError(f"The image {name} cannot be opened: the row has none.")
        if not any(Path(path).resolve().is_relative_to(x.resolve()) for x in self.folders):
            raise ImageError(
                f"The image {name} cannot be opened: the row has only a path, and {path} is not in "
                f"{' or '.join(map(str, self.folders))}."
            )
        return open_image(path)


def find_hugging_face(root: Path) -> Path | None:
    """Finds the file that makes a folder a Hugging Face dataset.

    Args:
        root: The folder.

    Returns:
        What ``save_to_disk`` wrote, a parquet file of the split train, or None.
    """
    if (root / "dataset_dict.json").is_file():
        return root / "dataset_dict.json"
    for state in (root / "state.json", root / "train" / "state.json"):
        if state.is_file() and state.with_name("dataset_info.json").is_file():
            return state
    groups = _group_files(list(_find_parquet(root)))
    return groups["train"][0] if "train" in groups else None


def _has_labels(
    root: Path, image_column: str | None = None, label_column: str | None = None
) -> bool:
    return _find_splits(root, image_column, label_column).test is not None


def _find_splits(root: Path, image_column: str | None, label_column: str | None) -> Splits:
    loaded = _load_splits(root)
    name = next(iter(loaded)) if len(loaded) == 1 else "train"
    if name not in loaded:
        raise FileNotFoundError(f"There is no split train in {root}: it has {', '.join(loaded)}.")
    train = loaded.pop(name)
    image = choose_image_column(train, image_column)
    label = choose_label_column(train, label_column)
    for name in _TEST_SPLITS:
        if label is not None and name in loaded and has_values(loaded[name], label):
            return Splits(train, loaded[name], name, image, label)
    return Splits(train, None, "", image, "")


def _load_splits(root: Path) -> dict[str, Dataset]:
    """Loads all splits of a folder, or of a dataset on the Hub."""
    datasets = import_datasets()
    saved = [root, *sorted(path for path in root.glob("*") if path.is_dir())]
    saved = [path for path in saved if (path / "state.json").is_file()]
    files = list(_find_parquet(root))
    is_on_hub = not root.exists() and _HUB_NAME.fullmatch(root.as_posix()) is not None
    if not (saved or files or is_on_hub):
        raise FileNotFoundError(
            f"There is no Hugging Face dataset in {root}: expected a folder that save_to_disk "
            "wrote, train*.parquet and test*.parquet, or the name USER/NAME of a dataset on the "
            f"Hub; {describe_folder(root)}."
        )
    with _quiet(datasets):
        try:
            if saved:
                return {path.name: datasets.load_from_disk(str(path)) for path in saved}
            if files:
                return {
                    name: datasets.Dataset.from_parquet(list(map(str, parts)), split=name)
                    for name, parts in (_group_files(files) or {"train": files}).items()
                }
            return dict(datasets.load_dataset(root.as_posix()))
        # datasets, pyarrow and huggingface_hub raise errors of nearly any type.
        except Exception as error:
            what = f"The dataset in {root} cannot be loaded"
            if is_on_hub:
                what = f"{root} is not a folder, and cannot be loaded from the Hub"
            reason = " ".join(str(error).split()) or type(error).__name__
            raise FileNotFoundError(f"{what}: {reason}") from error


def _find_parquet(root: Path) -> Iterator[Path]:
    for folder in (root, root / "data"):
        files = (path for path in folder.glob("[!.]*.parquet") if path.is_file())
        yield from sorted(files)


def _group_files(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Groups parquet files by the splits that they are named as."""
    groups: dict[str, list[Path]] = {}
    for path in files:
        if match := _SPLIT_FILE.fullmatch(path.name):
            groups.setdefault(match[1], []).append(path)
    return groups


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Hides the progress bars of ``datasets`` where nobody watches them."""
    hide = not (sys.stderr.isatty() or datasets.are_progress_bars_disabled())
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


HUGGING_FACE = DatasetSpec(
    "huggingface",
    ImageFacts(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    open_hugging_face,
    find=find_hugging_face,
    has_labels=_has_labels,
    labels="a column of labels in the split train and in the split test or validation",
    has_columns=True,
    is_generic=True,
)
