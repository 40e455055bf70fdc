"""Fixtures that several folders share."""

import os

# pytest-xdist runs a test on each processor, so one thread is right; before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from tests.run_recipe import RECIPES, command

collect_ignore = ["benchmarks"]  # scripts


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


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs a recipe in this process, which is quick; gives its exit code and what it printed."""

    def call(recipe, *options):
        monkeypatch.setattr(sys, "argv", command(recipe, *options)[1:])
        monkeypatch.syspath_prepend(str(RECIPES))
        code = 0
        try:
            runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
        except SystemExit as stop:
            # As Python does: a text goes to stderr and means exit code 1.
            code = 1 if isinstance(stop.code, str) else stop.code
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        return code, *capsys.readouterr()

    return call
