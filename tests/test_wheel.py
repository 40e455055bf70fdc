"""What is in the wheel runs without a clone: the commands, the presets, a user's own recipe."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
QUICK = ["--epochs", "1", "--num_workers", "0", "--precision", "32-true"]
QUICK += [
    "--train_fraction",
    "0.2",
    "--protocol",
    "knn",
    "--no_random_init",
    "--knn_every_n_epochs",
    "0",
]
MINE = '''"""My recipe: MoCo with MixCo and a short queue."""

from __future__ import annotations

from dataclasses import dataclass

from mixco_lightly import backbones, loss, models
from mixco_lightly.training import MixCoConfig, Recipe


@dataclass(frozen=True)
class MineConfig(MixCoConfig):
    """Mine.

    Args:
        keys: Number of keys in the queue.
    """

    keys: int = 64
    output_dir: str = "runs/mine"


def create_model(backbone: backbones.Backbone, config: MineConfig) -> models.MoCo:
    """Wires backbone and loss."""
    criterion = loss.MixCoLoss(
        mix_weight=config.mix_weight, memory_bank_size=(config.keys, config.projection_dim)
    )
    return models.MoCo(backbone, criterion, momentum=0.9, learning_rate=config.learning_rate)


recipe = Recipe("mine", MineConfig, create_model, mixed_views=(0,))

if __name__ == "__main__":
    recipe.main()
'''


def call(*arguments, **options):
    return subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, timeout=200, **options
    )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built of a copy, because a build leaves files in its folder."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    leave = shutil.ignore_patterns("__pycache__", "results")
    for name in ("mixco_lightly", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=leave)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    built = call(sys.executable, "-c", build, target, cwd=source)
    assert built.returncode == 0, built.stderr
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """The folder that the wheel is installed to."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    result = call(*pip, "--no-compile", "--target", folder, wheel)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Runs a program in an empty folder, with the installed package and without the clone."""
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}

    def run_program(*arguments):
        return call(*arguments, cwd=tmp_path, env=environment)

    code = "import mixco_lightly; print(mixco_lightly.__file__)"
    found = run_program(sys.executable, "-c", code)
    assert Path(found.stdout.strip()).parent == installed / "mixco_lightly"
    return run_program


@pytest.fixture
def mixco_lightly(run, installed):
    """Runs the installed command."""
    return lambda *arguments: run(installed / "bin" / "mixco-lightly", *arguments)


def check_run(result, folder):
    """The run has ended with its table and its files."""
    assert result.returncode == 0, result.stderr
    assert "kNN" in result.stdout
    assert json.loads((folder / "summary.json").read_text())["knn_top1"] > 20  # chance is 10
    assert (folder / "model.safetensors").exists()


def test_the_wheel_holds_every_recipe_and_preset_once(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert len(set(names)) == len(names)
    for folder in ("recipes/", "recipes/presets/"):
        paths = (ROOT / folder).iterdir()
        expected = {path.name for path in paths if path.suffix in (".py", ".yaml")}
        inside = f"mixco_lightly/{folder}"
        found = {x.removeprefix(inside) for x in names if x.startswith(inside)}
        assert {x for x in found if "/" not in x} == expected
    outside = [x for x in names if not x.startswith("mixco_lightly/") and ".dist-info/" not in x]
    assert not outside


def test_the_wheel_holds_every_module(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mixco_lightly").rglob("*.py")}
    assert {"mixco_lightly/py.typed", *modules} <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheels_requirements_are_those_of_pyproject(installed):
    (distribution,) = importlib.metadata.distributions(path=[str(installed)])
    base = [text for text in distribution.requires if "extra" not in text]
    assert any(text.startswith("lightly<2,>=1.6") for text in base)
    assert not any(text.startswith(("jsonargparse", "kornia", "matplotlib")) for text in base)
    assert any("jsonargparse" in text and "recipes" in text for text in distribution.requires)


def test_the_command_trains_on_the_digits_to_its_table(mixco_lightly, tmp_path):
    run = tmp_path / "runs" / "moco"
    check_run(mixco_lightly("moco", *QUICK), run)
    # Its templates are in the wheel.
    command = "mixco-lightly moco --config runs/moco/config.yaml --output_dir runs/moco-again"
    assert command in (run / "report.html").read_text()


def test_a_preset_of_the_wheel_is_found_by_its_name(mixco_lightly):
    result = mixco_lightly("simclr", "--config", "small-cifar10-simclr", "--print_config")
    assert result.returncode == 0, result.stderr
    assert "backbone: resnet10t" in result.stdout


def test_a_recipe_of_ones_own_trains_to_its_table(run, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    result = run(sys.executable, "mine.py", *QUICK, "--keys", 32, "--report", "false")
    check_run(result, tmp_path / "runs" / "mine")


@pytest.mark.parametrize("program", ["moco", "evaluate", "mine.py"])
def test_without_the_extra_a_recipe_is_one_line(program, run, tmp_path):
    # Called as the command and the interpreter would call it, with one package hidden.
    (tmp_path / "mine.py").write_text(MINE)
    hide = "import runpy, sys; sys.modules['jsonargparse'] = None; sys.argv = sys.argv[1:]; "
    start = "runpy.run_path(sys.argv[0], run_name='__main__')"
    if program != "mine.py":
        start = "sys.argv.insert(0, ''); runpy.run_module('mixco_lightly', run_name='__main__')"
    result = run(sys.executable, "-c", hide + start, program, "--help")
    assert result.returncode == 1
    assert result.stderr == (
        "error: the recipes need packages that are not installed (jsonargparse): "
        "pip install 'mixco-lightly[recipes]'\n"
    )
