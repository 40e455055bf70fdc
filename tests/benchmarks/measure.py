"""Time and memory of several ways to do one thing, in alternation in one run.

A shared machine's speed drifts by more than the differences of interest. So the arms take turns,
and what counts is the ratio of their medians within one run.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping

# The profiler, which counts the memory, speaks of each of its starts.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from torch.profiler import ProfilerActivity, profile


def median_seconds(
    arms: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 2
) -> dict[str, float]:
    """Median time of each arm, in seconds.

    Args:
        arms: Functions by name.
        repeats: How often each of them is timed.
        warm_up: How often each of them runs before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(-warm_up, repeats):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes(run: Callable[[], object]) -> int:
    """Largest amount of memory that torch's tensors had at once beyond that of before, in bytes."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    run()  # what is made once and kept, as gradients, is not the arm's
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    # profiler.events() books an allocation on its operator; the raw events have their order.
    events = profiler.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    used = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        used += change.nbytes()
        peak = max(peak, used)
    return peak
