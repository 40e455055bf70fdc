"""Builds sdist and wheel, installs each and runs it in an empty folder.

    python tests/smoke_release.py                   what `make release-check` runs: all of it, here
    python tests/smoke_release.py build dist        builds into dist/, checks the metadata
    python tests/smoke_release.py run               runs the package that this Python has installed
    python tests/smoke_release.py tag v0.2.0 URL    checks what has to be true of a release's tag

Without arguments nothing is downloaded: each distribution is installed without its requirements
into an environment that sees the present one's packages. The workflow publish.yml installs them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ["", ".data", ".loss", ".backbones", ".models", ".evaluation", ".training", ".studies"]
# 1,348 images, so two steps of 64 in one epoch, with the evaluation that needs least time.
TWO_STEPS = "--train_fraction 0.1 --batch_size 64 --epochs 1 --num_workers 0 --precision 32-true"
TWO_STEPS += " --protocol knn --no_random_init --knn_every_n_epochs 0"


def call(*arguments: str | Path, folder: Path | None = None, show: bool = False) -> str:
    """Runs a program without this clone on its path; ends with its output if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, arguments)), cwd=folder, env=environment, capture_output=True, text=True
    )
    if result.returncode or show:
        print(result.stdout, result.stderr, sep="\n", flush=True)
    if result.returncode:
        sys.exit(f"error: {' '.join(map(str, arguments))} ended with {result.returncode}")
    return result.stdout


def build(target: Path) -> list[Path]:
    """Builds the sdist, and the wheel from it, into an empty folder."""
    if target.exists() and any(target.iterdir()):
        sys.exit(f"error: {target} is not empty: a release has one sdist and one wheel")
    # The workflow's Python has no setuptools; here nothing must be downloaded.
    alone = [] if os.environ.get("CI") else ["--no-isolation"]
    call(sys.executable, "-m", "build", *alone, "--outdir", target, ROOT)
    distributions = sorted(target.iterdir())
    call(sys.executable, "-m", "twine", "check", "--strict", *distributions, show=True)
    return distributions


def install_beside_present_packages(distribution: Path, environment: Path) -> Path:
    """Installs a distribution alone; returns the Python that has it and sees what we have."""
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(call(python, "-c", where).strip())
    # A .pth file in a folder that a .pth file adds is not read: our editable install stays out.
    (own / "present.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    call(
        *pip, "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", distribution
    )
    return python


def run() -> None:
    """Runs what a new user runs, in an empty folder, with the package that is installed here."""
    package = importlib.import_module("mixco_lightly")
    folder = Path(str(package.__file__)).parent
    distribution = importlib.metadata.distribution("mixco-lightly")
    assert folder.parent == Path(str(distribution.locate_file(""))), (
        "this is not what pip installed"
    )
    assert package.__version__ == distribution.version
    files = {str(path) for path in distribution.files or []}
    assert "mixco_lightly/py.typed" in files
    assert any(name.endswith("licenses/LICENSE") for name in files)
    tops = {name.partition("/")[0] for name in files if not name.startswith("..")}
    assert tops == {"mixco_lightly", f"mixco_lightly-{package.__version__}.dist-info"}, tops
    names = 0
    for name in PACKAGES:
        module = importlib.import_module(f"mixco_lightly{name}")
        names += len([getattr(module, public) for public in module.__all__])
    command = Path(sysconfig.get_path("scripts")) / "mixco-lightly"
    with tempfile.TemporaryDirectory() as empty:
        here = Path(empty)
        assert call(command, "--version", folder=here).split()[1] == package.__version__
        assert "--mix_weight" in call(command, "moco", "--help", folder=here)
        preset = call(command, "moco", "--config", "start-moco", "--print_config", folder=here)
        assert "resnet10t" in preset
        call(command, "moco", *TWO_STEPS.split(), folder=here)
        written = {path.name for path in (here / "runs" / "moco").iterdir()}
        assert {"summary.json", "metrics.csv", "model.safetensors"} <= written, written
    print(
        f"mixco-lightly {package.__version__} on Python {sys.version.split()[0]}: "
        f"{names} public names, --help, a preset and two steps work."
    )


def check_tag(tag: str, repository: str) -> None:
    """Ends with what has to be done before this tag can be published."""
    version = re.search(r'__version__ = "(.+)"', (ROOT / "mixco_lightly/__init__.py").read_text())
    problems = []
    if version is None or tag != f"v{version[1]}":
        problems.append(f"The tag is {tag}, __version__ is {version and version[1]}.")
    if f"\n## [{tag.removeprefix('v')}] - " not in (ROOT / "CHANGELOG.md").read_text():
        problems.append(f"CHANGELOG.md has no heading '## [{tag.removeprefix('v')}] - DATE'.")
    if f'\nRepository = "{repository}"\n' not in (ROOT / "pyproject.toml").read_text():
        problems.append(f'[project.urls] in pyproject.toml has no Repository = "{repository}".')
    if problems:
        sys.exit("error: " + " ".join(problems))
    print(f"{tag} can be published.")


def main() -> None:
    """Does what the arguments say."""
    match sys.argv[1:]:
        case ["build", target]:
            build(Path(target))
        case ["run"]:
            run()
        case ["tag", tag, repository]:
            check_tag(tag, repository)
        case []:
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                for distribution in build(Path(folder) / "dist"):
                    environment = Path(folder) / f"environment-{distribution.suffix[1:]}"
                    python = install_beside_present_packages(distribution, environment)
                    print(f"{distribution.name}, {distribution.stat().st_size / 1e6:.1f} MB:")
                    call(python, Path(__file__).resolve(), "run", show=True)
            print(f"{time.monotonic() - start:.0f} s")
        case _:
            sys.exit(f"error: unknown arguments. {__doc__}")


if __name__ == "__main__":
    main()
