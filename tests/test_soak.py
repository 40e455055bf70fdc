"""The soak test sees growth, and sees none where there is none."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import soak


def rows(count=100, **growth):
    """Samples with noise, and growth of some of them from the first to the last."""
    flat = {"rss_mb": 800.0, "handles": 20, "threads": 6, "all_processes": 3}
    flat |= dict.fromkeys(soak.REPORTED, 100.0)
    noise = [(-1) ** i * (i % 3) for i in range(count)]
    return [
        {"seconds": 10.0 * i, "steps": i}
        | {name: x + noise[i] + growth.get(name, 0) * i / count for name, x in flat.items()}
        for i in range(count)
    ]


@pytest.mark.parametrize("name", ["rss_mb", "handles", "threads", "all_processes"])
def test_growth_above_the_limit_is_an_error_and_noise_is_none(name, capsys):
    limit = 0.05 * 800 if name == "rss_mb" else 2
    # Of the growth over the whole time four fifths are after the warm-up.
    assert soak.report(rows()) == 0
    assert soak.report(rows(**{name: 0.8 * limit / 0.8})) == 0
    assert "GROWS" not in capsys.readouterr().out
    assert soak.report(rows(**{name: 1.2 * limit / 0.8})) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if "GROWS" in line]
    assert line.startswith(name)


def test_what_a_warm_up_takes_is_no_growth():
    warm = [row | {"rss_mb": 100.0} if row["seconds"] < 150 else row for row in rows()]
    assert soak.report(warm) == 0


def test_too_few_rows_are_no_proof(capsys):
    assert soak.report(rows(9)) == 1
    assert "too few" in capsys.readouterr().out


def test_handles_threads_memory_and_children_of_a_process_are_counted():
    before = soak.measure_all(os.getpid())
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with open(os.devnull):
        after = soak.measure_all(os.getpid())
    child.communicate(b"\n")
    stop.set()
    thread.join()
    assert after["threads"] == before["threads"] + 1
    assert after["handles"] == before["handles"] + 2  # the file and the child's pipe
    assert after["all_processes"] == before["all_processes"] + 1
    assert after["rss_mb"] > 10
    assert after["all_rss_mb"] > before["all_rss_mb"]
    assert soak.measure(child.pid) == {"rss_mb": 0.0, "handles": 0, "threads": 0}


def test_steps_are_read_from_the_metrics_of_a_run(tmp_path):
    path = tmp_path / "metrics.csv"
    assert soak.count_steps(path) == 0
    path.write_text("epoch,step,loss\n")
    assert soak.count_steps(path) == 0
    path.write_text("epoch,step,loss\n0,9,1.5\n1,19,1.4\n")
    assert soak.count_steps(path) == 20


@pytest.mark.slow
def test_a_minute_of_soak_passes_and_a_recipe_that_ends_is_an_error(tmp_path):
    program = [sys.executable, str(Path(soak.__file__)), "--every", "2"]
    output = tmp_path / "soak.csv"
    result = subprocess.run(
        [*program, "--minutes", "1", "--output", str(output)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(output.read_text().splitlines()) > 20
    result = subprocess.run(
        [*program, "--output", str(tmp_path / "2.csv"), "--", "--temperature", "0"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1
    assert "The recipe ended by itself: error: " in result.stdout
