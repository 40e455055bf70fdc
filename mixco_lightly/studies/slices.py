"""Ends a study after some minutes, each of its programs at a checkpoint."""

from __future__ import annotations

import math
import subprocess
import time
from pathlib import Path

POLL_SECONDS = 1.0


class Slice:
    """The time that a study may run before it stops.

    A training program is ended at its first checkpoint after that time, and an evaluation, which
    has none, ends by itself. So each slice gets on with the study, however short it is.

    Args:
        minutes: Length of the slice. Default: it has no end.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes

    def is_over(self) -> bool:
        """Returns whether its time has passed."""
        return time.monotonic() >= self._end

    def wait(self, process: subprocess.Popen[bytes], checkpoint: Path | None) -> bool:
        """Waits until a program ends, or ends it.

        Args:
            process: The program.
            checkpoint: The file that the program writes whenever it may be ended; None if it has no
                such file.

        Returns:
            Whether the program was ended.
        """
        written: float | None = None
        while True:
            try:
                process.wait(POLL_SECONDS)
                return False
            except subprocess.TimeoutExpired:
                if checkpoint is None or not self.is_over():
                    continue
            before, written = written, _time_of(checkpoint)
            if before is not None and written != before:
                # A run's folder holds a whole checkpoint at any time, so nothing else is needed.
                process.kill()
                process.wait()
                return True


def _time_of(file: Path) -> float:
    return file.stat().st_mtime if file.is_file() else 0.0
