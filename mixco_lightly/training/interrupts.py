"""Ends an interrupted command with one line.

It imports nothing heavy, so a command can call it before its own imports, which take seconds.
"""

from __future__ import annotations

import sys
from types import TracebackType


def end_in_one_line() -> None:
    """Makes Ctrl-C end the program with "Interrupted." instead of a traceback.

    The shell sees exit code 130, as for every program that Ctrl-C ends.
    """
    sys.excepthook = _report


def _report(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
