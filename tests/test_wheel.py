"""What is in sdist and wheel: every file by name; and the wheel runs without a clone.

The wheel is built from the sdist, as ``python -m build`` does.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mixco_lightly import __version__ as VERSION

ROOT = Path(__file__).parent.parent
QUICK = ["--backbone", "test_resnet", "--epochs", "1", "--num_workers", "0"]
QUICK += ["--precision", "32-true", "--train_fraction", "0.2", "--protocol", "knn"]
QUICK += ["--no_random_init", "--knn_every_n_epochs", "0"]
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


def files_of_the_repository():
    """Relative paths of its files: what git does not ignore, or all files of an sdist."""
    if (ROOT / ".git").exists():
        listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
        assert listed.returncode == 0, listed.stderr
        paths = map(Path, listed.stdout.splitlines())
        return {path for path in paths if (ROOT / path).is_file()}
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    made = {
        ".venv",
        ".pytest_cache",
        ".hypothesis",
        "runs",
        "__pycache__",
        "mixco_lightly.egg-info",
    }
    return {path for path in paths if not made & set(path.parts)}


def build(kind, source, target):
    code = "import sys; from setuptools import build_meta; build_meta.build_%s(sys.argv[1])"
    built = call(sys.executable, "-c", code % kind, target, cwd=source)
    assert built.returncode == 0, built.stderr
    (path,) = target.iterdir()
    return path


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    """The sdist, built of a copy, because a build leaves files in its folder."""
    source = tmp_path_factory.mktemp("source")
    for path in files_of_the_repository():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def unpacked(sdist, tmp_path_factory):
    """The folder in the sdist."""
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(sdist, folder)
    (source,) = folder.iterdir()
    return source


@pytest.fixture(scope="session")
def sdist_files(unpacked):
    """Relative paths in the sdist, before anything is built from it."""
    return {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def wheel(unpacked, sdist_files, tmp_path_factory):
    """The wheel, built from the sdist."""
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


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


def test_the_sdist_is_the_repository_and_no_larger_than_five_megabytes(sdist, sdist_files):
    written = {path for path in sdist_files if path.parts[0].endswith(".egg-info")}
    written |= {Path("PKG-INFO"), Path("setup.cfg")}
    assert sdist_files - written == files_of_the_repository() - written
    assert sdist.name == f"mixco_lightly-{VERSION}.tar.gz"
    assert sdist.stat().st_size < 5e6


def test_the_wheel_is_modules_templates_and_presets_and_no_larger_than_one_megabyte(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = (ROOT / "mixco_lightly").rglob("*.py")
    pages = [*(ROOT / "recipes").glob("*.py"), *(ROOT / "recipes/presets").glob("*.yaml")]
    assert len(pages) > 50
    templates = list((ROOT / "mixco_lightly/reports/templates").iterdir())
    assert templates
    modules = [*modules, *templates]
    inside = {path.relative_to(ROOT).as_posix() for path in modules} | {"mixco_lightly/py.typed"}
    inside |= {f"mixco_lightly/{path.relative_to(ROOT).as_posix()}" for path in pages}
    texts = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"]
    # Nothing else: no tests, no results, no pictures.
    assert sorted(names) == sorted(
        [*inside, *(f"mixco_lightly-{VERSION}.dist-info/{name}" for name in texts)]
    )
    assert wheel.name == f"mixco_lightly-{VERSION}-py3-none-any.whl"
    assert wheel.stat().st_size < 1e6


def test_the_wheels_requirements_are_those_of_pyproject(installed):
    (distribution,) = importlib.metadata.distributions(path=[str(installed)])
    base = [text for text in distribution.requires if "extra" not in text]
    assert any(text.startswith("lightly<2,>=1.6") for text in base)
    assert not any(text.startswith(("jsonargparse", "kornia", "matplotlib")) for text in base)
    assert any("jsonargparse" in text and "recipes" in text for text in distribution.requires)
    assert distribution.metadata["Author"] == "The mixco-lightly developers"
    assert distribution.metadata["License-Expression"] == "MIT"
    urls = dict(text.split(", ") for text in distribution.metadata.get_all("Project-URL"))
    assert urls["MixCo (paper)"].endswith("2010.06300")
    assert all(url.startswith("https://") for url in urls.values())


@pytest.mark.slow  # make release-check does so too
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


@pytest.mark.slow
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
