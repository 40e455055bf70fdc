"""Batches of a stream of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from mixco_lightly.data.images import ImageError


class StreamBatches:
    """Whole batches of a stream, pass after pass, without an end.

    It is its own iterator, so whoever iterates over it again goes on behind the last batch. A
    trainer's epoch is then a number of steps and not a pass: were the stream opened anew in every
    epoch, its later images would never be seen.

    Args:
        open_pass: Called with the number of passes so far. Returns the batches of the next one.
    """

    def __init__(self, open_pass: Callable[[int], DataLoader[Any]]) -> None:
        self._open_pass = open_pass
        self._num_passes = 0
        self._batches: Iterator[Any] = iter(())

    def __iter__(self) -> StreamBatches:
        """Returns itself."""
        return self

    def __next__(self) -> Any:
        """Returns the next batch.

        Raises:
            ImageError: If a whole pass gives no batch, or an image of the stream is broken.
        """
        batch = next(self._batches, None)
        if batch is None:
            loader = self._open_pass(self._num_passes)
            self._num_passes += 1
            self._batches = iter(loader)
            batch = next(self._batches, None)
            if batch is None:
                raise ImageError(
                    f"A pass over the stream gives no whole batch of {loader.batch_size} images in "
                    f"any of {max(loader.num_workers, 1)} loader processes: lower --batch_size or "
                    "--num_workers."
                )
        return batch

    def close(self) -> None:
        """Ends the loader's processes."""
        self._batches = iter(())
