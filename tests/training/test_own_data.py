"""Runs on a user's own dataset with their own transform, by options and by a recipe."""

import json
import runpy
import shutil
import sys

import pytest
import yaml

from tests.conftest import end_of
from tests.run_recipe import TINY
from tests.training.test_resume import assert_same_run, rows

# Images of two sizes, whose class is their colour.
OWN = '''
"""Mine."""
import numpy as np
from PIL import Image
from lightly.transforms import SimCLRTransform


class Noise:
    def __init__(self, count):
        self.count = count
        self.targets = [index % 2 for index in range(count)]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng([self.count, index])
        pixels = rng.integers(128, size=(16 + index % 3, 16, 3), dtype=np.uint8)
        pixels[..., index % 2] += 127
        return Image.fromarray(pixels), index % 2


def create(data_dir, train):
    return Noise(24 if train else 12)


def views(image_size, mean, std):
    print("views of", image_size)
    return SimCLRTransform(input_size=image_size, normalize={"mean": mean, "std": std})
'''
RECIPE = """
from mixco_lightly import loss, models
from mixco_lightly.training import MixCoConfig, Recipe, optimiser_arguments


def create_model(backbone, config):
    criterion = loss.MixCoLoss(mix_weight=config.mix_weight)
    return models.SimCLR(backbone, criterion, **optimiser_arguments(config))


recipe = Recipe(
    "mine", MixCoConfig, create_model, mixed_views=(0, 1), dataset=create, transform=views
)
if __name__ == "__main__":
    recipe.main()
"""
OPTIONS = [*TINY, "--image_size", 16, "--batch_size", 8, "--epochs", 2, "--knn_every_n_epochs", 1]
OPTIONS += ["--random_init", "false", "--protocol", "knn", "torch", "--online_probe", "true"]


def record(run):
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The file of a user's functions."""
    monkeypatch.setattr("mixco_lightly.data.own_code._FUNCTIONS", {})
    path = tmp_path / "my_own_data.py"
    path.write_text(OWN)
    return path


def test_own_images_and_views_are_mixed_probed_resumed_bit_for_bit_and_evaluated(
    own, tmp_path, run_here, evaluate
):
    name = f"{own}:create"
    options = ["--dataset", name, "--transform", f"{own}:views", "--keep_every_n_epochs", 1]
    run, whole = tmp_path / "run", tmp_path / "whole"
    code, printed, error = run_here("simclr", *OPTIONS, *options, "--output_dir", whole)
    assert code == 0, error
    assert f"simclr on {name}: 24 images of 16 pixels" in printed
    assert "augmented by workers" in printed
    assert "views of 16" in printed
    assert (record(whole)["dataset"], record(whole)["transform"]) == (name, f"{own}:views")
    logged = {column for row in rows(whole) for column, text in row.items() if text}
    assert {"mix", "knn_top1", "online_top1"} <= logged
    summary = json.loads((whole / "summary.json").read_text())
    assert {"knn_top1", "linear_top1"} <= summary.keys()

    code, _, error = run_here("simclr", *OPTIONS, *options, "--output_dir", run)
    assert code == 0, error
    shutil.copy(run / "checkpoints" / "epoch-0001.ckpt", run / "checkpoints" / "last.ckpt")
    (run / "checkpoints" / "epoch-0002.ckpt").unlink()
    code, _, error = run_here("simclr", "--config", run / "config.yaml", "--resume")
    assert code == 0, error
    assert_same_run(run, whole)
    other = ["--transform", "lightly.transforms:SimCLRTransform"]
    code, _, error = run_here("simclr", "--config", run / "config.yaml", "--resume", *other)
    assert code == 1
    assert f"transform {own}:views, not lightly.transforms:SimCLRTransform" in error

    quiet = ["--backbone_dir", run, "--num_workers", 0, "--knn_k", 5, "--protocol", "knn"]
    code, _, error = evaluate(*quiet)
    assert code != 0
    assert f"give --dataset {name}, or another dataset" in error
    code, _, error = evaluate(*quiet, "--dataset", name)
    assert code == 0, error
    (result,) = json.loads((run / "evaluation.json").read_text())["results"]
    assert (result["dataset"], result["top1"]) == (name, summary["knn_top1"])


def test_a_recipes_own_functions_are_recorded_and_options_come_before_them(
    own, tmp_path, monkeypatch, capsys
):
    page = tmp_path / "my_own_recipe.py"
    page.write_text(OWN + RECIPE)

    def start(*options):
        monkeypatch.setattr(sys, "argv", [str(page), *map(str, options)])
        return end_of(lambda: runpy.run_path(str(page), run_name="__main__"), capsys)

    run = tmp_path / "run"
    code, printed, error = start(*OPTIONS, "--epochs", 1, "--output_dir", run)
    assert code == 0, error
    assert f"mine on {page}:create: 24 images" in printed
    assert (record(run)["dataset"], record(run)["transform"]) == (f"{page}:create", f"{page}:views")
    assert json.loads((run / "summary.json").read_text())["knn_top1"] > 0
    options = ["--dataset", "digits", "--transform", "lightly.transforms:SimCLRTransform"]
    options += ["--train_fraction", 0.05, "--protocol", "none", "--output_dir", tmp_path / "other"]
    code, printed, error = start(*OPTIONS, "--epochs", 1, *options)
    assert code == 0, error
    assert "mine on digits: " in printed
    assert "views of" not in printed
    assert record(tmp_path / "other")["transform"] == "lightly.transforms:SimCLRTransform"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--augment", "device"], "--augment device"),
        (["--transform", "no_such.py:views"], "There is no file "),
        (["--transform", "views"], "'views' names no function: expected FILE.py:FUNCTION"),
        (["--augmentations", "crop-flip"], "--augmentations"),
        (["--min_scale", "0.5"], "--min_scale"),
        (["--image_column", "img"], "has no columns: leave out --image_column"),
    ],
)
def test_options_that_do_not_go_with_own_code_are_one_line(
    options, message, own, tmp_path, run_here
):
    given = ["--dataset", f"{own}:create", "--transform", f"{own}:views"]
    given += ["--output_dir", tmp_path / "run"]
    code, _, error = run_here("simclr", *OPTIONS, *given, *options)
    assert code == 1
    assert message in error.splitlines()[-1]
    assert not (tmp_path / "run").exists()
