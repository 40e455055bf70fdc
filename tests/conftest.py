"""Fixtures that several folders share."""

import os

# pytest-xdist runs a test on each processor, so one thread is right; before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import gc
import importlib
import math
import runpy
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import mixco_lightly.machine as machine

# MIXCO_TEST_FAST_BFLOAT16=0 or 1 forces the processor's answer; all tests pass with each.
import tests.forced_machine  # noqa: F401
from tests.run_recipe import RECIPES, command

gc.disable()  # What is imported is no garbage, and to look for some in it takes seconds.

collect_ignore = ["benchmarks", "mutants.py", "smoke_release.py", "soak.py"]  # scripts
collect_ignore += ["gpu"]  # make test-gpu


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Half as many workers again as processors: many tests wait for programs that they started."""
    return math.ceil(1.5 * machine.available_processors())


def pytest_collection_finish():
    """From here on garbage is collected, but not looked for in the libraries and the tests."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """A run with a skipped test fails: a test that CI does not run proves nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped") and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    """Names the skipped tests, and counts those that ran by the folder or file they are in."""
    stats = terminalreporter.stats
    ran = Counter(
        "/".join(report.nodeid.partition("::")[0].split("/")[:2])
        for outcome in ("passed", "failed")
        for report in stats.get(outcome, [])
        if report.when == "call"
    )
    skipped = [report.nodeid for report in stats.get("skipped", [])]
    counts = [f"{name} {count:,}" for name, count in sorted(ran.items())]
    terminalreporter.write_line(
        f"{sum(ran.values()):,} tests ran, {len(skipped)} skipped: {', '.join(counts)}"
    )
    for name in skipped:
        terminalreporter.write_line(f"SKIPPED, so this run fails: {name}", red=True)


@pytest.fixture
def image_folder(tmp_path):
    """An imagefolder of two classes, 12 training and 6 test images each, that differ by colour."""
    rng = np.random.default_rng(0)
    for split, count in [("train", 12), ("test", 6)]:
        for target, name in enumerate(["blue", "red"]):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 128, (16, 16, 3), dtype=np.uint8)
                pixels[..., 2 * (1 - target)] += 127
                Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return tmp_path / "images"


def end_of(start, capsys):
    """Exit code of a recipe that runs in this process, what it printed, and its error."""
    code = 0
    try:
        start()
    except SystemExit as stop:
        # As Python does: a text goes to stderr and means exit code 1.
        code = 1 if isinstance(stop.code, str) else stop.code
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    return code, *capsys.readouterr()


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """Calls evaluate.py's main, whose modules a test may change; gives what end_of gives."""
    monkeypatch.syspath_prepend(str(RECIPES))
    recipe = importlib.import_module("evaluate")

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, options)])
        return end_of(recipe.main, capsys)

    return call


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs a recipe in this process, which is quick; gives its exit code and what it printed.

    The curves are drawn by recipes that run in processes of their own; here they take half of a
    tiny run's time. The report has tests of its own.
    """
    monkeypatch.setattr("mixco_lightly.training.pretraining.report_run", lambda *arguments: None)
    monkeypatch.setattr(
        "mixco_lightly.training.summary.draw_curves",
        lambda run: (run / "curves.png").write_text("not drawn"),
    )

    def call(recipe, *options):
        monkeypatch.setattr(sys, "argv", command(recipe, *options)[1:])
        monkeypatch.syspath_prepend(str(RECIPES))
        path = str(RECIPES / f"{recipe}.py")
        return end_of(lambda: runpy.run_path(path, run_name="__main__"), capsys)

    return call
