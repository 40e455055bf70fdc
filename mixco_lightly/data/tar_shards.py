"""WebDataset's tar shards, indexed once and then read in any order.

The members of an uncompressed tar file lie in it as they are, so an image can be read by its
offset. Shards on a disk are therefore a dataset like any other: in every epoch each image is seen
once, in an order that the seed alone decides, and a resumed run goes on exactly.

Only local files are opened, and of their members only images and class numbers are read. Nothing is
unpickled, and no address or command in a name is followed (webdataset's own reader runs ``pipe:``).
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mixco_lightly.data.archive import ArchiveError
from mixco_lightly.data.image_files import ImageFiles, describe_folder, find_images, show_progress
from mixco_lightly.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DatasetSpec,
    ImageFacts,
    open_image,
)

_IMAGES = ("jpg", "jpeg", "png", "webp")
_LABEL = "cls"
_TESTS = ("test", "validation", "val")


class Shards(NamedTuple):
    """The tar files of a folder.

    Attributes:
        train: The training images.
        test: The test images; empty if there are none.
    """

    train: list[Path]
    test: list[Path]


class Span(NamedTuple):
    """Where an image is.

    Attributes:
        shard: The tar file.
        offset: First byte of the image in it.
        size: Number of bytes.
    """

    shard: str
    offset: int
    size: int


class SpanReader:
    """Opens images in tar files.

    Args:
        spans: Where each image is, by its path: the shard's path, a slash, the member's name.
    """

    def __init__(self, spans: dict[str, Span]) -> None:
        self.spans = spans

    def __call__(self, path: str) -> Image.Image:
        """Opens an image as RGB.

        Raises:
            ImageError: If it cannot be decoded; the message names shard and member.
            OSError: If the shard cannot be read.
        """
        shard, offset, size = self.spans[path]
        with open(shard, "rb") as file:
            file.seek(offset)
            return open_image(path, file.read(size))


def find_shards(root: str | Path) -> Shards:
    """Finds the tar shards of a folder.

    Training shards are ``root/train*.tar`` or ``root/train/*.tar``; test shards are those of
    ``test``, or else ``validation``, or else ``val``. If the folder has neither, all ``root/*.tar``
    are training shards without labels.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: If there are no shards, or test shards only.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixco_lightly.data.tar_shards import find_shards
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("train-000000.tar", "train-000001.tar", "val-000000.tar"):
        ...     (root / name).touch()
        >>> [[path.name for path in part] for part in find_shards(root)]
        [['train-000000.tar', 'train-000001.tar'], ['val-000000.tar']]
    """
    root = Path(root)
    train = _list_part(root, "train")
    test = next(filter(None, (_list_part(root, name) for name in _TESTS)), [])
    if not train and not test:
        train = _list_tars(root, "*.tar")
    if not train:
        layout = f"{root}/train-*.tar and {root}/test-*.tar (or validation-*.tar, val-*.tar)"
        advice = ""
        if re.search(r"[{*?]|^\w+:", str(root)):
            advice = " Give a folder on this machine; patterns, URLs and pipes are not read."
        raise FileNotFoundError(
            f"webdataset expects {layout}, the same in folders train and test, or shards without "
            f"labels, {root}/*.tar; {describe_folder(root)}.{advice}"
        )
    return Shards(train, test)


def _list_part(root: Path, name: str) -> list[Path]:
    return _list_tars(root, f"{name}*.tar") or _list_tars(root / name, "*.tar")


def _list_tars(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.name[0] != "." and path.is_file())


def open_tar_shards(root: Path, *, train: bool, download: bool = False) -> ImageFiles:
    """Opens the training or the test images of a folder of tar shards.

    A sample is the members whose names differ only after the first dot, as in WebDataset: an image
    (jpg, jpeg, png or webp) and its class, a number in ``cls``. ``root/classes.txt`` may have the
    names of classes 0, 1, ..., one a line; otherwise the numbers that occur are the names. Other
    members are not read. Without test shards, or without any ``cls``, the images have no labels.

    Args:
        root: The folder; see :func:`find_shards`.
        train: Whether to open the training images or the test images.
        download: Not used.

    Raises:
        FileNotFoundError: If there are no such shards, or no image in them.
        ArchiveError: If a shard is damaged, compressed, or not a tar file.
        ValueError: If a ``cls`` is not the number of a class, or only some images have one.
    """
    shards = find_shards(root)
    chosen = shards.train if train else shards.test
    if not chosen:
        raise FileNotFoundError(f"There are no test shards in {root}: {describe_folder(root)}.")
    split = f"{'train' if train else 'test'}-shards"
    spans: dict[str, Span] = {}
    numbers: dict[str, int] = {}
    for shard in show_progress(chosen, f"indexing {split}"):
        for path, span, number in index_shard(shard):
            if path in spans:
                raise ArchiveError(f"{shard} has two images {path}.")
            spans[path] = span
            if number is not None and shards.test:
                numbers[path] = number
    if not spans:
        raise FileNotFoundError(
            f"There is no image (.{', .'.join(_IMAGES)}) in the {len(chosen)} tar files of {split} "
            f"in {root}."
        )
    unlabelled = next((path for path in spans if path not in numbers), None)
    if numbers and unlabelled is not None:
        raise ValueError(
            f"{unlabelled} has no class, and {len(numbers):,} of {len(spans):,} images in {split} "
            f"have one: give each a member .{_LABEL}, or none."
        )
    classes, targets = _name_classes(root / "classes.txt", list(numbers.values()))
    samples = list(zip(spans, targets or [0] * len(spans), strict=True))
    sources = [str(shard) for shard in chosen]
    return ImageFiles(samples, classes, root, split, loader=SpanReader(spans), sources=sources)


def _name_classes(names: Path, numbers: Sequence[int]) -> tuple[list[str], list[int]]:
    """Returns the classes and the target of each image."""
    if not numbers:
        return [], []
    if not names.is_file():
        found = sorted(set(numbers))
        target = {number: index for index, number in enumerate(found)}
        return [str(number) for number in found], [target[number] for number in numbers]
    classes = names.read_text(encoding="utf-8").splitlines()
    if max(numbers) >= len(classes):
        raise ValueError(
            f"{names} names {len(classes)} classes, and there is an image of class {max(numbers)}: "
            "give a line for each class, from class 0 on."
        )
    return classes, list(numbers)


def index_shard(shard: Path) -> Iterator[tuple[str, Span, int | None]]:
    """Finds the images of a tar file.

    Args:
        shard: The tar file.

    Yields:
        For each image its path, where it is, and its class if it has one.

    Raises:
        ArchiveError: If the file is damaged, compressed, or not a tar file.
        ValueError: If a class is not a number.
    """
    images: dict[str, Span] = {}
    paths: dict[str, str] = {}
    numbers: dict[str, int] = {}
    try:
        # "r:" reads no compressed file.
        with tarfile.open(shard, "r:") as file:
            for member in file:
                # A leading ./, / or ../ means nothing here.
                name = posixpath.normpath(f"/{member.name}").lstrip("/")
                # WebDataset's key: the name up to the first dot after the last slash.
                folder, _, base = name.rpartition("/")
                key, _, kind = base.partition(".")
                kind = kind.lower()
                if member.isdir() or not key or kind not in (*_IMAGES, _LABEL):
                    continue
                key = f"{folder}/{key}"
                if not member.isreg() or member.issparse():
                    raise ArchiveError(f"{shard} has {name!r} as a link or a sparse file.")
                if kind == _LABEL:
                    stream = file.extractfile(member)
                    assert stream is not None
                    numbers[key] = _parse_class(stream.read(20), f"{shard}/{name}")
                elif key in images:
                    raise ArchiveError(f"{shard} has two images {key.lstrip('/')!r}.")
                else:
                    images[key] = Span(str(shard), member.offset_data, member.size)
                    paths[key] = f"{shard}/{name}"
            _check_end(file, shard)
    # Which of these a damaged file raises depends on where it is damaged.
    except (tarfile.TarError, EOFError, OverflowError, UnicodeError) as error:
        raise ArchiveError(
            f"{shard} is damaged or not an uncompressed tar file: {error}"
        ) from error
    for key, span in images.items():
        yield paths[key], span, numbers.get(key)


def _check_end(file: tarfile.TarFile, shard: Path) -> None:
    """Raises an ArchiveError if a header that is no header ended the listing of a tar file."""
    assert file.fileobj is not None
    file.fileobj.seek(file.offset)
    if file.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise ArchiveError(f"{shard} is damaged: there is no header at byte {file.offset:,}.")


def _parse_class(text: bytes, path: str) -> int:
    if not re.fullmatch(rb"\s*[0-9]{1,9}\s*", text):
        raise ValueError(f"{path} is {text!r}: expected the number of a class, such as 3.")
    return int(text)


def _find(root: Path) -> Path | None:
    """Returns a shard, so that images beside the shards are found too."""
    named = _list_part(root, "train")
    if named or any(find_images(root)):
        return named[0] if named else None
    return next(iter(_list_tars(root, "*.tar")), None)


def _has_labels(root: Path) -> bool:
    shards = find_shards(root)
    if not shards.test:
        return False
    first = next((sample for shard in shards.train for sample in index_shard(shard)), None)
    return first is not None and first[2] is not None


WEBDATASET = DatasetSpec(
    "webdataset",
    ImageFacts(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    open_tar_shards,
    find=_find,
    has_labels=_has_labels,
    labels="a member .cls for each image, and test shards beside the training shards",
    is_generic=True,
)
