"""A run from Python: what it opens, returns and raises, and how a command is named."""

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from mixco_lightly import MixCoLoss
from mixco_lightly.data import catalogue
from mixco_lightly.models import SimCLR
from mixco_lightly.training import MixCoConfig, Recipe, command_line, load_recipe, pretrain


def quick(image_folder, run, **options):
    """Options of a run of one epoch."""
    return MixCoConfig(
        dataset="imagefolder",
        data_dir=str(image_folder),
        image_size=16,
        backbone="test_resnet",
        epochs=1,
        batch_size=10,
        num_workers=0,
        precision="32-true",
        protocol=["knn"],
        knn_k=5,
        report=False,
        output_dir=str(run),
        **options,
    )


def create_simclr(backbone, config):
    return SimCLR(backbone, MixCoLoss(), learning_rate=0.1)


def test_a_run_opens_training_and_test_images_once_and_returns_its_summary(
    image_folder, tmp_path, monkeypatch
):
    opened, create_dataset = [], catalogue.create_dataset

    def count(name, data_dir, train, *args, **options):
        opened.append(train)
        return create_dataset(name, data_dir, train, *args, **options)

    monkeypatch.setattr(catalogue, "create_dataset", count)
    config = quick(image_folder, tmp_path / "run", knn_every_n_epochs=1)
    before = replace(config)
    summary = pretrain(Recipe("mine", MixCoConfig, create_simclr, mixed_views=(0, 1)), config)
    assert opened == [True, False]
    assert config == before
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"knn_top1", "random_init_knn_top1"} <= summary.keys()
    with pytest.raises(FrozenInstanceError):
        config.epochs = 2


def test_the_function_raises_where_the_command_exits(image_folder, tmp_path):
    config = quick(image_folder, tmp_path / "run", warmup_epochs=1.0)
    with pytest.raises(ValueError, match="--warmup_epochs must be less than --epochs"):
        pretrain(Recipe("mine", MixCoConfig, create_simclr), config)
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_given_the_chosen_optimiser_is_an_error(image_folder, tmp_path):
    config = quick(image_folder, tmp_path / "run", optimizer="adamw")
    with pytest.raises(ValueError, match=r"\*\*optimiser_arguments\(config\) in create_model"):
        pretrain(Recipe("mine", MixCoConfig, create_simclr), config)


def test_a_program_is_named_as_the_user_called_it(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["my recipes/mine.py", "--epochs", "3"])
    assert command_line.started_as() == "python 'my recipes/mine.py'"
    monkeypatch.setattr(command_line, "INSTALLED_RECIPES", tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "draw_mixtures.py")])
    assert command_line.started_as() == "mixco-lightly draw-mixtures"


def test_a_file_without_a_recipe_and_a_missing_one_are_errors(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"empty\.py has no recipe"):
        load_recipe(path)
    with pytest.raises(FileNotFoundError, match="There is no recipe 'byol'"):
        load_recipe("byol")
    path.write_text(
        "from mixco_lightly.training import MixCoConfig, Recipe\n"
        "recipe = Recipe('mine', MixCoConfig, lambda backbone, config: None)\n"
    )
    assert load_recipe(Path(path)).method == "mine"
