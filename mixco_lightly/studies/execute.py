"""Runs a study: each run is a program of its own, and what is finished is skipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from pathlib import Path
from typing import Any

from mixco_lightly.machine import available_processors
from mixco_lightly.studies.figures import FIGURES
from mixco_lightly.studies.plan import Run, Study, folder_name
from mixco_lightly.studies.results import is_evaluated, is_finished, write_results
from mixco_lightly.studies.slices import Slice
from mixco_lightly.training.processes import STUDY_PROCESS
from mixco_lightly.training.recipe_files import recipes_folder


def run_all(
    study: Study,
    runs: Sequence[Run],
    output_dir: Path,
    jobs: int = 1,
    part: Slice | None = None,
) -> list[str]:
    """Makes the runs that are not finished, and writes the results after each of them.

    Args:
        study: The study.
        runs: All of its runs.
        output_dir: Its folder, which must exist.
        jobs: Number of runs at a time; they share the processors.
        part: When to stop, with runs left to make. Default: when all are made.

    Returns:
        A line for each run that failed.

    Raises:
        KeyboardInterrupt: At Ctrl-C, once the runs have ended; each ends at a checkpoint.
    """
    pending = [run for run in runs if not is_finished(run)]
    print(f"{len(runs)} runs, {len(runs) - len(pending)} of them finished -> {output_dir}")
    threads = max(1, available_processors() // jobs)
    part = part or Slice()

    def make(index: int, run: Run) -> str:
        """Makes a run; the first ones whatever the time, so that every slice gets on."""
        if index >= jobs and part.is_over():
            return ""
        log = output_dir / "logs" / f"{'-'.join(run.folder.relative_to(output_dir).parts)}.log"
        return run_one(run, threads, log, part)

    failures = []
    start = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(make, index, run): run for index, run in enumerate(pending)}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                run, failure = futures[future], future.result()
                if part.is_over() and not failure and not is_finished(run):
                    continue
                left = (time.monotonic() - start) / done * (len(pending) - done)
                state = f"failed, {failure}" if failure else _describe(run)
                print(
                    f"{done}/{len(pending)}  {run.label}: {state}  "
                    f"({timedelta(seconds=round(left))} left)",
                    flush=True,
                )
                if failure:
                    failures.append(f"{run.label}: {failure}")
                write_results(study, runs, output_dir, jobs)
        finally:
            # After an error or Ctrl-C the pool would otherwise make all the other runs first.
            pool.shutdown(cancel_futures=True)
    return failures


def run_one(run: Run, threads: int, log: Path, part: Slice) -> str:
    """Makes or resumes a run, then evaluates it on its further datasets.

    Args:
        run: The run.
        threads: Threads of each program if OMP_NUM_THREADS is not set.
        log: File that the run's output is appended to.
        part: When to stop. At least one program is run.

    Returns:
        Exit code and last line of the program that failed; empty if none did.
    """
    checkpoint = run.folder / "checkpoints" / "last.ckpt"
    has_run = False
    if not (run.folder / "summary.json").is_file():
        options = {**run.options, "output_dir": str(run.folder)}
        flag = "--resume" if checkpoint.is_file() else "--overwrite"
        command = write_command(run.recipe, options, flag, log.with_suffix(".yaml"))
        if failure := _run_program(command, threads, log, part, checkpoint):
            return failure
        has_run = True
    for name, given in run.transfer.items():
        if is_evaluated(run, name):
            continue
        if has_run and part.is_over():
            return ""
        has_run = True
        options = {
            **given,
            "backbone_dir": [str(run.folder)],
            "output_dir": str(run.transfer_folder(name)),
            "seed": run.options["seed"],
        }
        path = log.with_name(f"{log.stem}-{folder_name(name)}.log")
        # Overwrites what an interrupted evaluation left.
        command = write_command("evaluate", options, "--overwrite", path.with_suffix(".yaml"))
        if failure := _run_program(command, threads, path, part):
            return failure
    return ""


def write_command(name: str, options: Mapping[str, Any], flag: str, file: Path) -> list[str]:
    """Writes a command's options to a YAML file, and returns the command line that reads them.

    Args:
        name: Name of the command, such as ``moco``.
        options: Its options.
        flag: A flag that wins over them, such as ``--resume``.
        file: The file; its folder is made if needed.
    """
    import yaml

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(dict(options)))
    script = recipes_folder() / f"{name}.py"
    return [sys.executable, str(script), "--config", str(file), flag]


def start_in_background(command: Sequence[str], log: Path) -> int:
    """Starts a command in a session of its own, and returns its process id.

    Args:
        command: The command line.
        log: File that its output is appended to.
    """
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process.pid


def _run_program(
    command: Sequence[str], threads: int, log: Path, part: Slice, checkpoint: Path | None = None
) -> str:
    """Runs a command; returns its exit code and last line if it fails."""
    # The program ends with this one, even if this one is killed: nobody else resumes its run.
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, STUDY_PROCESS: str(os.getpid())}
    with log.open("a") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        if part.wait(process, checkpoint) or process.returncode == 0:
            return ""
    lines = log.read_text().strip().splitlines()
    return f"exit code {process.returncode}: {lines[-1] if lines else 'no output'} (see {log})"


def _describe(run: Run) -> str:
    """Returns a finished run's figures in one line."""
    summary = json.loads((run.folder / "summary.json").read_text())
    return ", ".join(f"{name} {summary[name]:.2f}" for name in FIGURES if name in summary)
