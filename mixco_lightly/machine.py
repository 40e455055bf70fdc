"""What the machine can do: fast bfloat16, processors, precision, and how it keeps memory.

Every decision that depends on the machine is one function here. The callers look it up in this
module (``machine.has_fast_bfloat16(...)``), so a test can set it either way in one place.
"""

from __future__ import annotations

import ctypes
import os
import platform

import torch

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
# More workers than this wait for the memory, not for a processor.
_MAX_WORKERS = 8


def has_fast_bfloat16(device: torch.device) -> bool:
    """Returns whether the device multiplies matrices faster in bfloat16 than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def available_processors() -> int:
    """Returns how many processors this process may use, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_num_workers(num_workers: int | None) -> int:
    """Returns the given number, or one worker for each available processor, 8 at most."""
    return min(_MAX_WORKERS, available_processors()) if num_workers is None else num_workers


def runs_on_cpu(accelerator: str) -> bool:
    """Returns whether Lightning trains on the CPU with this accelerator option."""
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def choose_precision(precision: str, accelerator: str) -> str:
    """Returns the given precision, or for ``auto`` the fastest that is safe on the device.

    ``auto`` takes bf16-mixed where the device is faster at it, 16-mixed on other CUDA devices and
    32-true elsewhere.

    Args:
        precision: Lightning's precision, or ``auto``.
        accelerator: Lightning's accelerator.
    """
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if has_fast_bfloat16(torch.device("cuda")) else "16-mixed"
    on_cpu = runs_on_cpu(accelerator)
    return "bf16-mixed" if on_cpu and has_fast_bfloat16(torch.device("cpu")) else "32-true"


def keep_freed_memory() -> bool:
    """Makes glibc keep the memory of freed tensors for the next step.

    By default glibc returns tensors above 32 MB to the system and requests them anew in every
    step. The system then zeroes their pages each time, which nearly doubles the time of a
    transformer's step (docs/speed.md). The peak stays the same but is held until the process ends.

    Does nothing on other systems, or where the environment has allocator settings of its own
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
