"""Images that are read in a stream, whose number need not be known."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from mixco_lightly.data.images import ImageError, open_image


class ImageStream(IterableDataset[tuple[Any, int]]):
    """Opens and transforms the images of a stream, shared out to the processes that read it.

    torch gives every loader process a copy of an IterableDataset, and each copy would give all
    images. Of P processes the p-th therefore keeps the images p, p + P, p + 2P, ... This needs the
    same order in each of them: a source that shuffles draws from a generator of its own, with a
    seed that is the same everywhere. A source that shares itself out, by
    ``torch.utils.data.get_worker_info`` and the rank, says so by the attribute
    ``splits_itself = True``; webdataset's do share themselves out and cannot say so, so the user
    sets the attribute.

    Args:
        source: Yields images, or pairs of image and class number. An image is a Pillow image or the
            bytes of an encoded one. Images without a class have the target 0.
        transform: Called with each image, in RGB.
        rank: This device's number among those that train together.
        world_size: Number of these devices.
        max_broken_images: How many images that cannot be opened may be left out, in a pass over the
            stream and on this device.
        broken_list: File that a line is added to for each of them, in the first pass. Default:
            none.

    Attributes:
        num_broken: Images left out so far in this pass, in all loader processes of this device.

    Raises:
        ImageError: While iterating: for something else than an image, or if more images are broken.

    Examples:
        >>> from PIL import Image
        >>> from torchvision.transforms import PILToTensor
        >>> from mixco_lightly.data.image_stream import ImageStream
        >>> source = [(Image.new("RGB", (4, 4)), 3), (Image.new("L", (2, 2)), 5)]
        >>> [(tuple(image.shape), target) for image, target in ImageStream(source, PILToTensor())]
        [((3, 4, 4), 3), ((3, 2, 2), 5)]
    """

    def __init__(
        self,
        source: Any,
        transform: Callable[[Image.Image], Any],
        rank: int = 0,
        world_size: int = 1,
        max_broken_images: int = 0,
        broken_list: Path | None = None,
    ) -> None:
        self.source = source
        self.transform = transform
        self.rank = rank
        self.world_size = world_size
        self.max_broken_images = max_broken_images
        self.broken_list = broken_list
        # In memory that this device's loader processes share.
        self._num_broken = multiprocessing.Value("q", 0)
        self._is_started = False

    @property
    def num_broken(self) -> int:
        """Images left out so far in this pass."""
        return int(self._num_broken.value)

    def describe_reading(self, num_readers: int) -> str:
        """Returns a line that says how processes share the stream; empty for a single one."""
        if num_readers == 1:
            return ""
        if getattr(self.source, "splits_itself", False):
            return f"The stream shares itself out to {num_readers} processes: splits_itself is set."
        return (
            f"Each of {num_readers} processes reads the whole stream and keeps one image of "
            f"{num_readers}. A dataset that shares itself out must have the attribute "
            "splits_itself = True."
        )

    def start_pass(self, number: int) -> None:
        """Begins a pass: tells the source its number, for its order, and counts from zero.

        Args:
            number: Passed to the source's ``set_epoch``, if it has one.
        """
        if self._is_started:
            self.broken_list = None
        self._is_started, self._num_broken.value = True, 0
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(number)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Yields this process's images, transformed, and their targets."""
        worker = get_worker_info()
        index, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        first, step = self.rank * count + index, self.world_size * count
        place = "of the stream"
        if getattr(self.source, "splits_itself", False):
            place = f"of reader {first + 1} of {step}"
            first, step = 0, 1
        for position, sample in enumerate(islice(self.source, first, None, step)):
            image, target = _parse_sample(sample)
            number = first + position * step + 1
            name = getattr(image, "filename", "") or f"number {number:,} {place}"
            try:
                image = open_image(name, image)
            except ImageError as error:
                self._leave_out(error)
            else:
                yield self.transform(image), target

    def _leave_out(self, error: ImageError) -> None:
        with self._num_broken.get_lock():
            self._num_broken.value += 1
            if self._num_broken.value > self.max_broken_images:
                raise ImageError(
                    f"More than {self.max_broken_images} images of the stream cannot be opened, "
                    f"the limit that --max_broken_images sets. {error}"
                ) from error
        if self.broken_list is not None:
            with self.broken_list.open("a") as file:
                file.write(f"{error}\n")


def _parse_sample(sample: Any) -> tuple[bytes | Image.Image, int]:
    """Returns the image and the target of what a stream gives."""
    match sample:
        case (bytes() | Image.Image()) as image:
            return image, 0
        case [(bytes() | Image.Image()) as image, target]:
            try:
                return image, int(target)
            except (ValueError, TypeError, RuntimeError):
                raise ImageError(
                    f"The stream gives {target!r} for the class of an image: expected a number."
                ) from None
    parts = ", ".join(type(part).__name__ for part in sample) if _is_pair(sample) else ""
    raise ImageError(
        f"The stream gives {f'({parts})' if parts else type(sample).__name__}: expected an image, "
        "or a pair of an image and its class; an image is a Pillow image or encoded bytes."
    )


def _is_pair(sample: Any) -> bool:
    return isinstance(sample, (tuple, list))
