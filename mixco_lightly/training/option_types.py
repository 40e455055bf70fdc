"""Number types of options.

A field of an options class is annotated with one of these::

    epochs: PositiveInt = 30

For a type checker it is an int or a float. The command line also checks its range, whether the
value comes from an argument, a file or a dictionary; the text is the range in its error messages.
"""

from __future__ import annotations

from typing import Annotated

PositiveInt = Annotated[int, "a whole number of at least 1"]
NonNegativeInt = Annotated[int, "a whole number of at least 0"]
PositiveFloat = Annotated[float, "a number above 0"]
NonNegativeFloat = Annotated[float, "a number of at least 0"]
ClosedUnitInterval = Annotated[float, "a number from 0 to 1"]
