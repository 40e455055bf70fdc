"""Errors of the recipes' options: one line that says what was meant."""

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.run_recipe import RECIPES

PRESETS = RECIPES / "presets"


@pytest.fixture
def refuse(run_here, tmp_path, monkeypatch):
    """Runs a recipe whose options are wrong; gives its one line."""
    monkeypatch.chdir(tmp_path)

    def call(recipe, *options):
        code, _, error = run_here(recipe, *options)
        assert code == 2
        (line,) = error.strip().splitlines()
        assert line.startswith("error: ")
        assert not (tmp_path / "runs").exists()
        return line

    return call


MEANT = [
    ("moco", "--lr", "--learning_rate"),
    ("moco", "--wd", "--weight_decay"),
    ("simclr", "--bs", "--batch_size"),
    ("selfcon", "--batch", "--batch_size"),
    ("moco", "--learning-rate", "--learning_rate"),
    ("moco", "--temprature", "--temperature"),
    ("moco", "--device", "--devices"),
    ("moco", "--mix", "--mix_temperature or --mix_weight"),
    ("evaluate", "--knn", "--knn_k"),
    ("compare", "--job", "--jobs"),
    ("backbones", "--image-size", "--image_size"),
    ("draw_mixtures", "--pair", "--pairs"),
]


@pytest.mark.parametrize(("recipe", "given", "meant"), MEANT)
@pytest.mark.parametrize("form", ["apart", "joined"])
def test_an_option_that_is_short_misspelt_or_hyphenated_names_the_one_that_was_meant(
    recipe, given, meant, form, refuse
):
    line = refuse(recipe, *([given, "1"] if form == "apart" else [f"{given}=1"]))
    assert line.startswith(f"error: there is no option {given} (did you mean ")
    assert f"(did you mean {meant}" in line


def test_an_option_like_no_other_and_a_word_without_its_option_are_named(refuse):
    assert "there is no option --zzz (--help" in refuse("moco", "--zzz", 3)
    assert "foo is not an option: options are written as --name" in refuse("moco", "foo")


VALUES = [
    ("moco", ["--precision", "fp16"], "one of auto, 32-true, 16-mixed, bf16-mixed, got 'fp16'"),
    ("moco", ["--stem", "no"], "one of auto, timm, small, got 'no'"),
    ("moco", ["--epochs", "0"], "a whole number of at least 1, got '0'"),
    ("moco", ["--image_size", "x"], "a whole number of at least 1, got 'x'"),
    ("moco", ["--momentum", "1.5"], "a number from 0 to 1, got '1.5'"),
    ("moco", ["--alpha", "x"], "a number above 0, got 'x'"),
    ("moco", ["--resume", "maybe"], "true or false, got 'maybe'"),
    ("moco", ["--backbone_kwargs", "x"], "a mapping, such as '{\"name\": 1}', got 'x'"),
    ("evaluate", ["--protocol", "knn", "foo"], "one of torch, sklearn, knn"),
    ("backbones", ["--sort", "size"], "one of name, parameters, feature_dim"),
]


@pytest.mark.parametrize(("recipe", "options", "expected"), VALUES)
def test_a_wrong_value_is_told_the_choices_in_words_and_not_in_pythons_types(
    recipe, options, expected, refuse
):
    line = refuse(recipe, *options)
    assert f"{options[0]} must be {expected}" in line
    for python in ("typing", "Literal", "class", "Parser key", "Union"):
        assert python not in line


@pytest.mark.parametrize("text", ["", "# only a comment\n", "a word\n", "- a\n- b\n"])
def test_a_file_without_options_says_what_it_should_have(text, refuse, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    line = refuse("moco", "--config", "mine.yaml")
    assert "mine.yaml has no options: write one on each line, such as 'epochs: 30'" in line


def test_a_file_that_is_not_yaml_is_named(refuse, tmp_path):
    (tmp_path / "mine.yaml").write_text("epochs: [1\n")
    assert "mine.yaml is not YAML" in refuse("moco", "--config", "mine.yaml")


@pytest.mark.parametrize(
    ("recipe", "preset", "owner", "foreign"),
    [
        ("simclr", "cifar10-moco", "moco.py", "memory_bank_size, momentum"),
        ("moco", "cifar100-selfcon", "selfcon.py", "objective, exits, subnetwork"),
        ("moco", "small-study", "compare.py", "base, groups, changes"),
        ("compare", "start-moco", "moco.py", "dataset"),
        ("evaluate", "cifar10-simclr", "moco.py or selfcon.py or simclr.py", "epochs"),
    ],
)
def test_a_file_for_another_recipe_names_the_foreign_options_and_that_recipe(
    recipe, preset, owner, foreign, refuse
):
    line = refuse(recipe, "--config", PRESETS / f"{preset}.yaml")
    assert f"{preset}.yaml has options that {recipe}.py does not have: " in line
    assert foreign in line
    assert f"it is a file for {owner}" in line


def test_every_misspelt_name_in_a_file_is_named_with_the_one_that_was_meant(refuse, tmp_path):
    (tmp_path / "mine.yaml").write_text("learning-rate: 0.1\nepoch: 3\nalpha: 1\n")
    line = refuse("moco", "--config", "mine.yaml")
    assert "learning-rate (did you mean learning_rate?), epoch (did you mean epochs?)" in line
    assert "alpha" not in line


def test_a_single_value_for_a_list_in_a_file_names_the_option(refuse, tmp_path):
    (tmp_path / "mine.yaml").write_text("protocol: knn\n")
    line = refuse("evaluate", "--config", "mine.yaml")
    assert "--protocol must be a list in a file, such as [knn], got 'knn'" in line


def test_options_from_a_dictionary_are_checked_in_the_same_words(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    command_line, moco = (
        importlib.import_module(name) for name in ("mixco_lightly.training.command_line", "moco")
    )
    for options, message in [
        ({"learning_rat": 0.1}, "no option --learning_rat .did you mean --learning_rate"),
        ({"precision": "fp16"}, "--precision must be one of auto, 32-true"),
        ({"protocol": "knn"}, "--protocol must be a list"),
    ]:
        with pytest.raises(ValueError, match=message):
            command_line.check_options(moco.MoCoConfig, options)


COMMANDS = ["moco", "simclr", "selfcon", "evaluate", "compare", "backbones", "draw_mixtures"]


@pytest.mark.parametrize("recipe", COMMANDS)
def test_ctrl_c_during_the_imports_is_one_line_and_exit_code_130(recipe, tmp_path):
    # A module of this name comes before torch's and waits to be interrupted.
    (tmp_path / "torch.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": ""}
    process = subprocess.Popen(
        [sys.executable, str(RECIPES / f"{recipe}.py")],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, SIGINT may be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "importing").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert error == "Interrupted.\n"
    assert process.returncode == -signal.SIGINT  # 130 in a shell
