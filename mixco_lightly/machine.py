"""Decisions that depend on the machine: bfloat16, precision, workers and freed memory.

Callers look each function up in this module (``machine.has_fast_bfloat16(...)``), so that a test
can replace it in one place.
"""

from __future__ import annotations

import ctypes
import os
import platform

import torch

# Constants of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
# More workers than this wait for memory, not for a processor.
_MAX_WORKERS = 8


def has_fast_bfloat16(device: torch.device) -> bool:
    """Returns whether the device multiplies matrices faster in bfloat16 than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    # torch 2.10. Every processor with AMX's tiles multiplies bfloat16 in them.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def available_processors() -> int:
    """Returns how many processors this process may use, at most those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_num_workers(num_workers: int | None) -> int:
    """Returns the given number, or for None one worker per available processor, at most 8."""
    return min(_MAX_WORKERS, available_processors()) if num_workers is None else num_workers


def runs_on_cpu(accelerator: str) -> bool:
    """Returns whether Lightning trains on the CPU with the given accelerator option."""
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def choose_precision(precision: str, accelerator: str) -> str:
    """Returns the given precision, or for ``auto`` the fastest safe one.

    ``auto`` chooses bf16-mixed if the device multiplies faster in bfloat16, otherwise 16-mixed on
    CUDA devices and 32-true elsewhere.

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

    By default glibc returns tensors above 32 MB to the system and requests them again in every
    step. The system zeroes their pages each time, which nearly doubles the time of a
    transformer's step (docs/speed.md). Peak memory does not change, but the process holds it until
    it ends.

    Does nothing on other systems, or if the environment sets the allocator (MALLOC_MMAP_MAX_,
    MALLOC_TRIM_THRESHOLD_ and the like).

    Returns:
        Whether glibc now keeps the memory.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or is_set:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # mallopt returns 1 on success. A threshold of -1 means the highest there is.
    return bool(mallopt(_M_MMAP_MAX, 0) == 1 and mallopt(_M_TRIM_THRESHOLD, -1) == 1)
