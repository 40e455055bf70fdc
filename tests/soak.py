"""Soak test: train MixCo for a long time and fail if memory, file handles or threads grow.

    python tests/soak.py --minutes 120 --output soak.csv
    python tests/soak.py --minutes 600 --data_dir data/cifar10 -- --backbone resnet18

It runs recipes/moco.py on an imagefolder (by default 400 small images that it makes) with worker
processes, which come and go with each epoch, and every --every seconds appends a row to the CSV
file: seconds, steps, images/s since the row before, and, for the recipe's process and for it with
its workers, resident memory in MB, open file handles, threads and processes. What follows -- are
options of the recipe.

At the end a line is fitted to each of them over the time after the warm-up, the first fifth. Exit
code 1 if the growth that the fit gives for that time is above the limit: 5% of memory; 2 handles,
threads or processes; or if the recipe has ended by itself. Linux only, because it reads /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

RECIPE = Path(__file__).parent.parent / "recipes" / "moco.py"
WARM_UP = 0.2  # of the time: caches fill, the allocator takes what it needs
MAX_MEMORY_GROWTH = 0.05  # of the memory after the warm-up
MAX_COUNT_GROWTH = 2.0  # handles, threads, processes
# Of the recipe's process alone, and with its workers. The workers' memory is mostly shared with it
# and is counted once for each, and a row may fall between two epochs: their sum only reports.
MEMORY = ["rss_mb"]
COUNTS = ["handles", "threads", "all_processes"]
REPORTED = ["images_per_second", "all_rss_mb", "all_handles", "all_threads"]
COLUMNS = ["seconds", "steps", *MEMORY, *COUNTS, *REPORTED]
OPTIONS = ["--dataset", "imagefolder", "--augment", "workers", "--num_workers", "2"]
OPTIONS += ["--epochs", "1000000", "--memory_bank_size", "1000"]
DEFAULTS = ["--image_size", "32", "--backbone", "test_resnet", "--batch_size", "32"]


def create_images(folder: Path, count: int = 200) -> None:
    """An imagefolder of two classes; the test images are never used."""
    rng = np.random.default_rng(0)
    for split, number in [("train", count), ("test", 2)]:
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index:04}.png")


def process_tree(pid: int) -> list[int]:
    """A process and all that have come from it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*"):
            try:
                found += map(int, (task / "children").read_text().split())
            except OSError:  # it has ended
                continue
    return found


def measure(pid: int) -> dict[str, float]:
    """Memory, handles and threads of a process; zero if it has ended."""
    try:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        return {
            "rss_mb": int(status.get("VmRSS", "0 kB").split()[0]) / 1024,
            "handles": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": int(status["Threads"]),
        }
    except OSError:
        return {"rss_mb": 0.0, "handles": 0, "threads": 0}


def measure_all(pid: int) -> dict[str, float]:
    """What a row has of a process and of its tree."""
    tree = [measure(one) for one in process_tree(pid)]
    sums = {f"all_{name}": sum(one[name] for one in tree) for name in tree[0]}
    return {**tree[0], **sums, "all_processes": len(tree)}


def count_steps(metrics: Path) -> int:
    """Steps that a run has logged."""
    try:
        lines = metrics.read_text().splitlines()
        return int(lines[-1].split(",")[lines[0].split(",").index("step")]) + 1
    except (OSError, IndexError, ValueError):  # not there yet, or just being written
        return 0


def find_growth(rows: list[dict[str, float]]) -> dict[str, tuple[float, float, float]]:
    """Value after the warm-up, growth from there to the end, and its limit; of fitted lines."""
    end = rows[-1]["seconds"]
    rows = [row for row in rows if row["seconds"] >= WARM_UP * end]
    seconds = np.array([row["seconds"] for row in rows])
    found = {}
    for name in (*MEMORY, *COUNTS, *REPORTED):
        slope, start = np.polyfit(seconds - seconds[0], [row[name] for row in rows], 1)
        limit = np.inf
        if name in MEMORY:
            limit = MAX_MEMORY_GROWTH * start
        elif name in COUNTS:
            limit = MAX_COUNT_GROWTH
        found[name] = (float(start), float(slope * (seconds[-1] - seconds[0])), float(limit))
    return found


def report(rows: list[dict[str, float]]) -> int:
    """Prints the growth; 1 if it is above a limit."""
    if len(rows) < 10:
        print(f"{len(rows)} rows are too few for a fit: more --minutes, or a smaller --every.")
        return 1
    grows = False
    for name, (start, growth, limit) in find_growth(rows).items():
        above = growth > limit
        grows |= above
        shown = "not limited" if np.isinf(limit) else f"limit {limit:+.1f}"
        print(f"{name:18} {start:10.1f} {growth:+10.2f}  {shown}{'  GROWS' if above else ''}")
    return int(grows)


def main() -> None:
    """Trains, samples, judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--every", type=float, default=10, help="seconds between rows")
    parser.add_argument("--output", type=Path, default=Path("soak.csv"))
    parser.add_argument("--data_dir", type=Path, help="an imagefolder; default: made")
    parser.add_argument("recipe_options", nargs="*", help="after --")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.output.exists():
        parser.error(f"{options.output} is there already")

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = options.data_dir or folder / "images"
        if options.data_dir is None:
            create_images(data)
        command = [sys.executable, str(RECIPE), *OPTIONS, *DEFAULTS, *options.recipe_options]
        command += ["--data_dir", str(data), "--output_dir", str(folder / "run")]
        batch_size = int(command[len(command) - 1 - command[::-1].index("--batch_size") + 1])
        log = folder / "log.txt"
        with log.open("w") as output, options.output.open("x", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            program = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                rows = sample(program, folder / "run", options, batch_size, writer, file)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(program.pid, signal.SIGKILL)
                program.wait()
        if program.returncode != -signal.SIGKILL:
            print(f"The recipe ended by itself: {log.read_text().strip()[-2000:]}")
            sys.exit(1)
    sys.exit(report(rows))


def sample(program, run, options, batch_size, writer, file) -> list[dict[str, float]]:
    """Writes rows from the first logged step on until the time is over or the recipe ends."""
    rows: list[dict[str, float]] = []
    start = None
    while program.poll() is None:
        time.sleep(options.every if start else 0.5)
        steps = count_steps(run / "metrics.csv")
        if not steps:
            continue
        start = start or time.monotonic()
        seconds = time.monotonic() - start
        speed = 0.0
        if rows and seconds > rows[-1]["seconds"]:
            passed = seconds - rows[-1]["seconds"]
            speed = (steps - rows[-1]["steps"]) * batch_size / passed
        row = {"seconds": seconds, "steps": steps, "images_per_second": speed}
        rows.append(row | measure_all(program.pid))
        writer.writerow({name: f"{x:.1f}" for name, x in rows[-1].items()})
        file.flush()
        if seconds >= 60 * options.minutes:
            break
    return rows


if __name__ == "__main__":
    main()
