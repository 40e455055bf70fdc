"""What glibc's allocator does with the memory of a freed tensor."""

from __future__ import annotations

import ctypes
import os
import platform

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Makes glibc keep the memory of freed tensors for the next step.

    It would give tensors above 32 MB back to the system and take them anew in every step; the
    system then zeroes their pages each time, which nearly doubles the time of a step of a
    transformer (docs/speed.md). The peak stays what it is, but is held until the process ends.

    Nothing happens on other systems, or where the environment has settings of the user's own
    (MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_ and the like).

    Returns:
        Whether it was done.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or is_set:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # 1 is success; -1 as a threshold is the highest there is.
    return bool(mallopt(_M_MMAP_MAX, 0) == 1 and mallopt(_M_TRIM_THRESHOLD, -1) == 1)
