"""What CONTRIBUTING.md tells to do can be done, and what it says of the code is so."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mixco_lightly.evaluation.protocols as protocols
import mixco_lightly.loss
from mixco_lightly import Features, create_backbone
from mixco_lightly.data import DATASETS, MixCoCollate, create_dataset, find_dataset
from mixco_lightly.evaluation.parts import Part
from tests.test_readme import anchors
from tests.test_rooms import MODULES, imports_of, own_imports_of
from tests.test_wheel import files_of_the_repository

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
STEPS = re.findall(r"`([\w/]+\.py)`[^`]*:\n\n```python\n(.*?)```", TEXT, re.DOTALL)
DIFFS = re.findall(r"```diff\n(.*?)```", TEXT, re.DOTALL)
PROTOCOLS = "mixco_lightly/evaluation/protocols.py"
NEW = {path: code for path, code in STEPS if path != PROTOCOLS}
(CLASS,) = [code for path, code in STEPS if path == PROTOCOLS]
CHANGED = ["mixco_lightly/loss/__init__.py", "mixco_lightly/data/catalogue.py", PROTOCOLS]


def changed(text, diff):
    """A text after a diff, whose lines without a sign say where: each is there, in this order."""
    lines, place = text.splitlines(), 0
    for sign, line in ((line[:1], line[1:]) for line in diff.splitlines()):
        if sign == "+":
            lines.insert(place, line)
            place += 1
        else:
            place = lines.index(line, place)
            if sign == "-":
                del lines[place]
            else:
                place += 1
    return "\n".join(lines) + "\n"


def follow(folder):
    """Does in a copy of the repository what the page says."""
    for path, code in NEW.items():
        assert not (folder / path).exists(), path
        (folder / path).write_text(code)
    path = folder / PROTOCOLS
    before = "def _image_options("
    assert path.read_text().count(before) == 1
    path.write_text(path.read_text().replace(before, f"{CLASS}\n\n{before}"))
    for path, diff in zip(CHANGED, DIFFS, strict=True):
        (folder / path).write_text(changed((folder / path).read_text(), diff))


def load(path, folder, monkeypatch):
    """Loads a new file of the page under the name that it would have."""
    name = path.removesuffix(".py").replace("/", ".")
    (folder / f"{name}.py").write_text(NEW[path])
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_three_walks_and_their_changes_fit_the_files(tmp_path):
    assert len(NEW) == 5
    for folder in {Path(path).parent for path in [*NEW, *CHANGED]}:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for path in CHANGED:
        shutil.copy(ROOT / path, tmp_path / path)
    follow(tmp_path)
    for path in CHANGED:
        ast.parse((tmp_path / path).read_text())
    assert '"InterpolationLoss"' in (tmp_path / CHANGED[0]).read_text()
    assert " SHAPES,\n" in (tmp_path / CHANGED[1]).read_text()
    assert "        NearestCentroid()," in (tmp_path / CHANGED[2]).read_text()


def test_the_method_passes_its_own_tests_and_its_recipe_takes_a_step(tmp_path, monkeypatch):
    made = load("mixco_lightly/loss/interpolation_loss.py", tmp_path, monkeypatch)
    loss = made.InterpolationLoss
    monkeypatch.setattr(mixco_lightly.loss, "InterpolationLoss", loss, raising=False)
    tests = load("tests/loss/test_interpolation_loss.py", tmp_path, monkeypatch)
    names = [name for name in vars(tests) if name.startswith("test_")]
    assert len(names) == 2
    for name in names:
        getattr(tests, name)()
    recipe = load("recipes/interpolation.py", tmp_path, monkeypatch).recipe
    config = recipe.config_class(
        projection_dim=8, learning_rate=0.1, weight_decay=0.0, warmup_epochs=0, optimizer="sgd"
    )
    model = recipe.create_model(create_backbone("test_resnet", 16), config)
    assert type(model.criterion) is loss
    images = [((torch.rand(3, 16, 16), torch.rand(3, 16, 16)), 0) for _ in range(4)]
    step = model.training_step(MixCoCollate(views=recipe.mixed_views)(images), 0)
    step.backward()
    assert step.isfinite()
    assert model.projection_head.layers[0].weight.grad.abs().sum() > 0


def test_the_dataset_is_found_and_opened_by_its_name(tmp_path, monkeypatch):
    spec = load("mixco_lightly/data/shapes.py", tmp_path, monkeypatch).SHAPES
    monkeypatch.setitem(DATASETS, spec.name, spec)
    with pytest.raises(FileNotFoundError, match=r"no .*shapes-1.train\.npy: expected uint8"):
        create_dataset("shapes", tmp_path, train=True)
    (tmp_path / "shapes-1").mkdir()
    np.save(tmp_path / "shapes-1" / "train.npy", np.zeros((6, 16, 16, 3), np.uint8))
    assert find_dataset(tmp_path) == ("shapes", "shapes-1")
    assert create_dataset("shapes", tmp_path, train=True).targets == [0, 1, 0, 1, 0, 1]


def test_the_protocol_measures_by_class_means(tmp_path, monkeypatch):
    load("mixco_lightly/evaluation/centroids.py", tmp_path, monkeypatch)
    names = dict(vars(protocols))
    exec(f"from __future__ import annotations\n{CLASS}", names)  # noqa: S102
    train = Features(torch.tensor([[0.0], [2.0], [8.0]]), torch.tensor([0, 0, 1]))
    test = Features(torch.tensor([[4.0], [5.0], [1.0], [6.0]]), torch.tensor([0, 1, 1, 1]))
    protocol = names["NearestCentroid"]()
    outcome = protocol.measure(Part("backbone", torch.nn.Identity(), train, test), None)
    # The means are 1 and 8: 4 is the first class, 5 the second, 1 the first, 6 the second.
    assert outcome.last.top1 == 75.0
    assert protocol.settings == {}


def closure(modules):
    """Modules of this package with all that they import of it."""
    found, waiting = set(), set(modules)
    while waiting:
        module = waiting.pop()
        assert module in MODULES, module
        found.add(module)
        waiting |= own_imports_of(module) - found
    return found


def test_what_could_move_into_lightly_imports_only_what_the_table_lists():
    table = TEXT.partition("## What could move into Lightly")[2]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    listed = {part.split("`")[1]: set(re.findall(r"`([\w.]+)`", names)) for part, names in rows}
    assert list(listed) == ["mix_pairs", "SelfConLoss", "MixCoLoss"]
    homes = {"mix_pairs": "data.mixture", "SelfConLoss": "loss.selfcon_loss"}
    homes["MixCoLoss"] = "loss.mixco_loss"
    assert listed == {name: closure([home]) for name, home in homes.items()}
    modules = set().union(*listed.values())
    imported = {name.partition(".")[0] for module in modules for name in imports_of(module)}
    assert imported - sys.stdlib_module_names - {"mixco_lightly"} == {"torch", "lightly"}


def test_every_link_file_and_target_that_the_page_names_is_there():
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT):
        assert "://" in target or (ROOT / target).is_file(), target
    made = {*NEW, "tests/data/"}
    for path in re.findall(r"(?:mixco_lightly|recipes|docs|tests)/[\w/.-]+\.(?:py|md)", TEXT):
        assert path in made or (ROOT / path).is_file(), path
    for workflow in re.findall(r"[\w-]+\.yml", TEXT):
        assert (ROOT / ".github/workflows" / workflow).is_file(), workflow
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make ([a-z-]+)", TEXT)) - {"and", "it"} <= set(targets)
    for name in ("pyproject.toml", "tests/test_lightly.py"):
        for anchor in re.findall(r"CONTRIBUTING\.md#([\w-]+)", (ROOT / name).read_text()):
            assert anchor in anchors(TEXT), anchor


@pytest.mark.slow
def test_who_follows_the_page_has_a_method_a_dataset_and_a_protocol(tmp_path):
    copy = tmp_path / "copy"
    for path in files_of_the_repository():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy / path)
    follow(copy)
    environment = {**os.environ, "PYTHONPATH": str(copy)}

    def python(*arguments):
        result = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    (copy / "docs/api.md").write_text(python("-m", "tests.test_rooms"))
    python("-m", "ruff", "check", *NEW, *CHANGED)
    python("-m", "ruff", "format", "--check", *NEW, *CHANGED)
    python("-m", "mypy")
    doctests = ["mixco_lightly/loss/interpolation_loss.py", "mixco_lightly/data/catalogue.py"]
    new_test = "tests/loss/test_interpolation_loss.py"
    python("-m", "pytest", "-q", new_test, "tests/test_rooms.py", *doctests)
    rng = np.random.default_rng(0)
    (copy / "data" / "shapes-1").mkdir(parents=True)
    for name, count in [("train", 40), ("test", 20)]:
        pixels = rng.integers(256, size=(count, 16, 16, 3), dtype=np.uint8)
        np.save(copy / "data" / "shapes-1" / f"{name}.npy", pixels)
    options = ["--data_dir", "data", "--epochs", 1, "--batch_size", 16, "--num_workers", 0]
    options += ["--precision", "32-true", "--protocol", "knn", "centroid"]
    printed = python("recipes/interpolation.py", *options)
    assert "Found shapes-1 in" in printed
    assert "class means" in printed
    printed = python(
        *("-m", "mixco_lightly", "evaluate", "--backbone_dir", "runs/interpolation"),
        *("--protocol", "centroid", "--num_workers", 0),
    )
    assert "class means" in printed
