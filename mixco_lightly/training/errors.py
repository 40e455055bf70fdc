"""Errors of users, said in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def error_line(error: BaseException) -> str:
    """Returns an error as the one line that a command ends with.

    Args:
        error: The error. Out of a worker process its text is a traceback, whose last line is the
            message.
    """
    if is_out_of_memory(error):
        return f"error: not enough memory: {' '.join(str(error).split())}"
    lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
    message = lines[-1] if lines[0].startswith("Caught") else " ".join(lines)
    # A traceback's last line starts with the error's class.
    return f"error: {message.removeprefix('mixco_lightly.data.broken.ImageError: ')}"


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether torch could not allocate memory, on any device."""
    return isinstance(error, RuntimeError) and "allocate" in str(error)


@contextmanager
def fail_in_one_line(
    errors: tuple[type[Exception], ...] = (ValueError, OSError),
) -> Iterator[None]:
    """Ends the program with one line and exit code 1 where bad input raises an error.

    For commands; functions of the library raise.
    """
    try:
        yield
    except errors as error:
        sys.exit(error_line(error))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(error_line(error))
