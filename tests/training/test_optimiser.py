"""The options of the optimiser: how they are completed, and that they reach the trainer."""

import csv
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
import yaml

from mixco_lightly import create_backbone, load_backbone
from mixco_lightly.training.optimiser import complete_optimiser, scale_rate
from mixco_lightly.training.options import MixCoConfig, OptimiserDefaults
from mixco_lightly.training.recipe import load_recipe
from tests.run_recipe import run, tiny_run


def complete(backbone="test_resnet", config=None, **options):
    config = replace(config or MixCoConfig(), **options)
    return complete_optimiser(config, create_backbone(backbone, 32))


@pytest.mark.parametrize(
    ("recipe", "rate", "decay"),
    [("moco", 0.06, 5e-4), ("simclr", 0.1, 5e-4), ("selfcon", 0.02, 1e-4)],
)
def test_a_resnet_trains_as_it_always_has(recipe, rate, decay):
    config, line = complete(config=load_recipe(recipe).config_class())
    assert (config.optimizer, config.learning_rate, config.weight_decay) == ("sgd", rate, decay)
    assert (config.warmup_epochs, config.gradient_clip, config.accumulate) == (0, 0, 1)
    assert line.startswith("Optimiser: sgd, chosen for convolutions with BatchNorm; learning rate")


def test_a_transformer_trains_with_adamw_and_warm_up():
    config, line = complete("test_vit", epochs=20)
    default = MixCoConfig.adamw_defaults
    assert config.optimizer == "adamw"
    assert config.learning_rate == default.learning_rate
    assert config.weight_decay == default.weight_decay
    assert config.warmup_epochs == 2
    assert "adamw, chosen for attention" in line


def test_depthwise_convolutions_warm_up_with_sgd_unless_the_user_says_otherwise():
    config, line = complete("mobilenetv3_small_050", epochs=20)
    assert (config.optimizer, config.learning_rate, config.warmup_epochs) == ("sgd", 0.06, 2)
    assert line.endswith("2 epochs of warm-up, for depthwise convolutions.")
    config, line = complete("mobilenetv3_small_050", epochs=20, warmup_epochs=0.0)
    assert config.warmup_epochs == 0
    assert line.endswith(" 0 epochs of warm-up.")
    # ConvNeXt's are depthwise too, and AdamW warms up in any case.
    config, line = complete("test_convnext", epochs=20)
    assert config.warmup_epochs == 2
    assert line.endswith(" 2 epochs of warm-up.")


def test_what_the_user_gives_is_used():
    given = {"learning_rate": 0.5, "weight_decay": 0.0, "warmup_epochs": 1.0}
    config, line = complete("test_vit", optimizer="sgd", pretrained=True, **given)
    assert {name: getattr(config, name) for name in given} == given
    assert line == "Optimiser: sgd; learning rate 0.5, weight decay 0, 1 epochs of warm-up."


def test_a_methods_own_defaults_win():
    class Config(MixCoConfig):
        adamw_defaults = OptimiserDefaults(0.5, 0.25, 0.5)

    config, _ = complete("test_vit", Config(), epochs=4)
    assert (config.learning_rate, config.weight_decay, config.warmup_epochs) == (0.5, 0.25, 2)


def test_pretrained_weights_get_a_tenth_of_the_rate_and_the_line_says_so():
    config, line = complete(pretrained=True)
    assert config.learning_rate == pytest.approx(0.006)
    assert "a tenth of 0.06" in line


@pytest.mark.parametrize(
    ("name", "factor"), [("sgd", 4), ("lars", 4), ("adamw", 2)], ids=["linear", "linear", "root"]
)
def test_a_base_learning_rate_is_scaled_to_all_images_of_a_step(name, factor):
    options = {"batch_size": 128, "devices": 2, "num_nodes": 2, "accumulate": 2}
    config, line = complete(optimizer=name, base_learning_rate=0.01, **options)
    assert config.learning_rate == pytest.approx(0.01 * factor)
    assert config.base_learning_rate is None  # config.yaml can be given to a recipe again
    assert "0.01 for 256 images, scaled to 1,024" in line
    assert scale_rate(name, 0.3, 256) == 0.3


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--learning_rate", 0.1, "--base_learning_rate", 0.2], "two values for one rate"),
        (["--optimizer", "lars", "--weight_decay", 0], "--weight_decay above 0"),
        (["--optimizer", "adam"], "one of auto, sgd, adamw, lars"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(options, part, run_here, tmp_path):
    code, _, error = run_here("moco", *options, "--output_dir", tmp_path / "run")
    assert code != 0
    (line,) = error.strip().splitlines()
    assert part in line


def test_options_reach_the_trainer(image_folder, tmp_path):
    options = ["--memory_bank_size", 8, "--optimizer", "adamw", "--accumulate", 2]
    options += ["--gradient_clip", 1e-12, "--weight_decay", 0, "--warmup_epochs", 0]
    output = run("moco", *tiny_run(image_folder, "--output_dir", "run", *options), cwd=tmp_path)
    assert "Optimiser: adamw; learning rate 0.0005, weight decay 0," in output
    folder = tmp_path / "run"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["learning_rate"] == 5e-4
    with (folder / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == [0, 1, 1]  # half as many as without --accumulate
    # Clipped to a norm far below AdamW's epsilon, gradients move nothing.
    pl.seed_everything(config["seed"], verbose=False)
    initial = create_backbone(config["backbone"], config["image_size"], stem=config["stem"])
    trained = dict(load_backbone(folder).named_parameters())
    for name, parameter in initial.named_parameters():
        torch.testing.assert_close(trained[name], parameter, rtol=0, atol=1e-5)


def test_a_run_with_adamw_resumes_bit_by_bit(image_folder, tmp_path):
    options = tiny_run(image_folder, "--memory_bank_size", 8, "--optimizer", "adamw")
    run("moco", *options, "--keep_every_n_epochs", 1, "--output_dir", "whole", cwd=tmp_path)
    part = tmp_path / "part"
    (part / "checkpoints").mkdir(parents=True)
    whole = tmp_path / "whole"
    text = (whole / "config.yaml").read_text()
    (part / "config.yaml").write_text(text.replace("output_dir: whole", "output_dir: part"))
    first = whole / "checkpoints" / "epoch-0001.ckpt"
    (part / "checkpoints" / "last.ckpt").write_bytes(first.read_bytes())
    run("moco", "--config", "part/config.yaml", "--resume", cwd=tmp_path)
    expected = (whole / "model.safetensors").read_bytes()
    assert (part / "model.safetensors").read_bytes() == expected
