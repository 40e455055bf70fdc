"""Errors of the recipes' options: one line that says what was meant."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest
import yaml

import mixco_lightly
from mixco_lightly.__main__ import main
from mixco_lightly.training.command_line import check_options, parse_options
from mixco_lightly.training.option_types import (
    ClosedUnitInterval,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from tests.run_recipe import RECIPES, command

PRESETS = RECIPES / "presets"
COMMANDS = ["moco", "simclr", "imix", "unmix", "selfcon"]
COMMANDS += ["evaluate", "compare", "paper", "export", "release", "backbones", "draw_mixtures"]


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
    ("moco", "--mix", "--mix_temperature or --mix_weight or --mix_probability"),
    ("imix", "--mix_weight", "--mixing"),
    ("evaluate", "--knn", "--knn_k"),
    ("compare", "--job", "--jobs"),
    ("export", "--output", "--output_dir"),
    ("release", "--name", "--names"),
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
    ("unmix", ["--mixing", "cut"], "one of mixup, cutmix, mask, mixup-or-cutmix, got 'cut'"),
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


@dataclass(frozen=True)
class First:
    """What comes first.

    Args:
        count: How many.
        rate: How fast.
    """

    count: PositiveInt = 3
    rate: PositiveFloat | None = None


@dataclass(frozen=True)
class Second:
    """What comes second.

    Args:
        seeds: Which.
        fast: Whether fast.
    """

    seeds: list[NonNegativeInt] = field(default_factory=lambda: [0])
    fast: bool = False


@dataclass(frozen=True)
class MineConfig(Second, First):  # the last parent's fields come first
    """Options of mine.

    Args:
        share: Which part.
        count: How many of mine.
    """

    share: ClosedUnitInterval = 0.5
    count: PositiveInt = 5


def read(monkeypatch, *options, **arguments):
    monkeypatch.setattr(sys, "argv", ["mine.py", *map(str, options)])
    return parse_options(MineConfig, "Mine.", **arguments)


def read_help(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        read(monkeypatch, "--help")
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_has_a_group_for_each_class_of_options_parents_first(monkeypatch, capsys):
    lines = [line.strip() for line in read_help(monkeypatch, capsys).splitlines()]
    expected = ["What comes first:", "--count", "--rate", "What comes second:", "--seeds"]
    expected += ["--fast", "Options of mine:", "--share"]
    start = lines.index("What comes first:")
    found = [next((x for x in expected if line.startswith(x)), None) for line in lines[start:]]
    assert list(filter(None, found)) == expected


def test_help_has_the_childs_text_and_default_in_the_parents_group(monkeypatch, capsys):
    text = " ".join(read_help(monkeypatch, capsys).split())
    assert "--count COUNT How many of mine. (type: PositiveInt, default: 5)" in text


WRONG_VALUES = [
    ({"count": 0}, "--count must be a whole number of at least 1, got '0'"),
    ({"rate": -1}, "--rate must be a number above 0, got '-1'"),
    ({"seeds": [1, -1]}, "--seeds must be a whole number of at least 0, got '-1'"),
    ({"fast": "perhaps"}, "--fast must be true or false, got 'perhaps'"),
    ({"share": 1.5}, "--share must be a number from 0 to 1, got '1.5'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_VALUES)
@pytest.mark.parametrize("source", ["arguments", "file", "dictionary"])
def test_values_are_checked_wherever_they_come_from(
    options, message, source, monkeypatch, capsys, tmp_path
):
    if source == "dictionary":
        with pytest.raises(ValueError, match=message.partition(", got")[0]):
            check_options(MineConfig, options)
        return
    ((name, value),) = options.items()
    given = [f"--{name}", *(value if isinstance(value, list) else [value])]
    if source == "file":
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(options))
        given = ["--config", tmp_path / "mine.yaml"]
    with pytest.raises(SystemExit):
        read(monkeypatch, *given)
    assert f"error: {message}" in capsys.readouterr().err


def test_checked_numbers_become_plain_ones(monkeypatch):
    config = read(monkeypatch, "--count", 7, "--rate", "0.5", "--seeds", 1, 2, "--share", 1)
    assert config == MineConfig(count=7, rate=0.5, seeds=[1, 2], share=1.0)
    kinds = [type(x) for x in (config.count, config.rate, *config.seeds, config.share)]
    assert kinds == [int, float, int, int, float]


def test_a_file_is_handed_to_its_check_before_its_options_are_read(monkeypatch, tmp_path):
    (tmp_path / "mine.yaml").write_text("no_option: 3\n")
    seen = []

    def check(path):
        seen.append(path)
        raise ValueError("this is no good file.")

    with pytest.raises(SystemExit) as stop:
        read(monkeypatch, "--config", tmp_path / "mine.yaml", check_file=check)
    assert stop.value.code == "error: this is no good file."
    assert seen == [tmp_path / "mine.yaml"]


def test_options_from_a_dictionary_are_checked_in_the_same_words():
    for options, message in [
        ({"shar": 0.1}, "no option --shar .did you mean --share"),
        ({"fast": "no idea"}, "--fast must be true or false"),
        ({"seeds": 3}, "--seeds must be a list"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_options(MineConfig, options)


@pytest.mark.parametrize("name", ["small-cifar10-moco", "small-cifar10-moco.yaml"])
def test_a_preset_is_found_by_its_name(name, run_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed, _ = run_here("moco", "--config", name, "--print_config")
    assert code == 0
    written = yaml.safe_load((PRESETS / "small-cifar10-moco.yaml").read_text())
    assert written.items() <= yaml.safe_load(printed).items()


def test_a_file_of_a_presets_name_wins_and_a_folder_does_not(run_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start-moco").mkdir()
    code, printed, _ = run_here("moco", "--config", "start-moco", "--print_config")
    assert yaml.safe_load(printed)["train_fraction"] == 0.1
    (tmp_path / "start-moco.yaml").write_text("epochs: 7\n")
    code, printed, _ = run_here("moco", "--config", "start-moco.yaml", "--print_config")
    assert code == 0
    assert yaml.safe_load(printed)["epochs"] == 7
    assert yaml.safe_load(printed)["train_fraction"] == 1


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("small-cifar10-mocco", "(did you mean small-cifar10-moco or "),
        ("runs/presets/start-simclr2.yaml", "(did you mean start-simclr?)"),
        ("nothing-like-it", f"(the presets are in {PRESETS})"),
    ],
)
def test_an_unknown_preset_names_close_ones(name, answer, refuse):
    line = refuse("moco", "--config", name)
    assert f"--config: there is neither a file nor a preset {name!r} {answer}" in line


# A recipe's imports, of which none is used before its options are read.
PAGE = '''"""A recipe of one's own."""

from __future__ import annotations

from dataclasses import dataclass

from mixco_lightly import backbones, data, evaluation, loss, models, training
from mixco_lightly.training.command_line import parse_options, print_table
from mixco_lightly.training.option_types import PositiveInt


@dataclass(frozen=True)
class MineConfig:
    """Options of mine.

    Args:
        epochs: How many.
    """

    epochs: PositiveInt = 3


parse_options(MineConfig, __doc__)
'''
LIST_MODULES = """
import atexit, runpy, sys
atexit.register(lambda: print("modules:", *sys.modules))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
HEAVY = {"torch", "pytorch_lightning", "sklearn", "kornia", "matplotlib", "rich", "timm"}


@pytest.fixture
def mine(tmp_path):
    """The page as a file."""
    (tmp_path / "mine.py").write_text(PAGE)
    return tmp_path / "mine.py"


def run_page(page, *options, before=""):
    """Runs a page; gives its exit code, its error, and the modules it has loaded."""
    result = subprocess.run(
        [sys.executable, "-c", before + LIST_MODULES, page, *options],
        capture_output=True,
        text=True,
        timeout=120,
    )
    modules = result.stdout.rpartition("modules:")[2].split()
    return result.returncode, result.stderr, set(modules)


@pytest.mark.parametrize(("option", "expected"), [("--help", 0), ("--epoch", 2)])
@pytest.mark.parametrize("recipe", ["mine", *COMMANDS])
def test_help_and_a_misspelt_option_load_nothing_heavy(recipe, option, expected, mine):
    page = mine if recipe == "mine" else RECIPES / f"{recipe}.py"
    code, error, modules = run_page(page, option)
    assert code == expected, error
    assert "jsonargparse" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize("module", ["jsonargparse", "docstring_parser", "yaml", "kornia", "bokeh"])
def test_without_the_extra_a_recipe_ends_in_one_line(module, mine):
    hide = f"import sys; sys.modules[{module!r}] = None\n"
    code, error, _ = run_page(mine, "--help", before=hide)
    assert code == 1
    (line,) = error.splitlines()
    name = {"docstring_parser": "docstring-parser", "yaml": "pyyaml"}.get(module, module)
    assert line == (
        f"error: the recipes need packages that are not installed ({name}): "
        "pip install 'mixco-lightly[recipes]'"
    )


def start(*arguments):
    """Runs ``python -m mixco_lightly``."""
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mixco_lightly", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("options", [[], ["--help"], ["-h"]])
def test_the_command_lists_its_recipes_without_importing_anything(options):
    result = start(*options)
    assert result.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name.replace('_', '-')} " in result.stdout
    assert "MoCo v2 with MixCo" in result.stdout
    assert not {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()} & HEAVY


def test_the_command_says_its_version():
    result = start("--version")
    assert (result.returncode, result.stdout) == (0, f"mixco-lightly {mixco_lightly.__version__}\n")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("mocco", "did you mean moco?"),
        ("draw-mixture", "did you mean draw-mixtures?"),
        ("zzz", "--help lists the commands"),
    ],
)
def test_a_misspelt_command_names_the_one_that_was_meant(name, meant):
    result = start(name)
    assert result.returncode == 2
    errors = [x for x in result.stderr.splitlines() if not x.startswith("import time:")]
    assert errors == [f"error: there is no command {name!r} ({meant})"]
    assert "| torch" not in result.stderr


@pytest.mark.parametrize("name", ["draw-mixtures", "draw_mixtures"])
def test_the_command_runs_a_page_as_a_program_with_its_options(name, monkeypatch, capsys):
    page = RECIPES / "draw_mixtures.py"
    seen = {}

    def run_path(path, run_name):
        seen.update(path=path, run_name=run_name, argv=sys.argv)

    monkeypatch.setattr("runpy.run_path", run_path)
    monkeypatch.setattr(sys, "argv", ["mixco-lightly", name, "--pairs", "2"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    main()
    # As `python recipes/draw_mixtures.py --pairs 2`, so Lightning can start further processes.
    assert seen["argv"] == command("draw_mixtures", "--pairs", 2)[1:]
    assert seen["path"] == str(page)
    assert seen["run_name"] == "__main__"


@pytest.mark.parametrize("recipe", COMMANDS)
def test_ctrl_c_during_the_imports_is_one_line_and_exit_code_130(recipe, tmp_path):
    # A module of this name comes before torch's and waits to be interrupted.
    (tmp_path / "torch.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(RECIPES.parent)])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": ""}
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
        # Until it sleeps. Before that, Python may be in a weakref's callback of the import, where
        # it ignores exceptions.
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert error == "Interrupted.\n"
    assert process.returncode == -signal.SIGINT  # 130 in a shell
