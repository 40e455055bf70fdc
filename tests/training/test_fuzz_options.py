"""Random options: a recipe starts with legal ones, or ends with one line that says why not.

What runs is the recipe itself in this process, up to the moment that its training or measuring
would begin; files, network and planted code are watched.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import math
import pickle
import random
import runpy
import sys
import urllib.error
import warnings
from collections import Counter

import pytest
import yaml

from mixco_lightly.training import command_line
from tests.run_recipe import RECIPES

BASE = {
    "moco": {"backbone": "test_resnet", "memory_bank_size": 8, "num_workers": 0},
    "simclr": {"backbone": "test_resnet", "num_workers": 0},
    "selfcon": {"backbone": "test_resnet", "num_workers": 0},
    "evaluate": {"backbone": ["test_resnet"], "num_workers": 0},
}
CONFIGS = {
    "moco": "MoCoConfig",
    "simclr": "SimCLRConfig",
    "selfcon": "SelfConConfig",
    "evaluate": "EvaluateConfig",
}


class Planted:
    """Unpickled, it writes a file."""

    def __reduce__(self):
        return exec, ("open('planted', 'w').write('')",)


PLAUSIBLE = [0, 1, 2, 3, 7, 64, 0.5, 1.0, 1.5, 0.01, True, False, None]
PLAUSIBLE += ["digits", "test_vit", "timm", "small", "auto", "cpu", "full", "device", "workers"]
PLAUSIBLE += ["lightly.transforms:SimCLRTransform"]
PLAUSIBLE += ["selfcon-su", "selfcon-mu", "one-stage", "fc", "same", "32-true", "knn", "out"]
PLAUSIBLE += [[1], [1, 2], ["knn"], ["torch", "knn"], [0.5], {"drop_rate": 0.1}]
HOSTILE = [math.nan, math.inf, -math.inf, -1, -0.5, 0.0, -0.0, 1e308, 1e-320, 2**63, 10**15]
HOSTILE += [10**30, -(10**30), "", " ", "nan", "inf", "-inf", "1e400", "1_000", "0x10"]
HOSTILE += [
    "٣",
    "null",
    "~",
    "true",
    "[]",
    "{}",
    "[1",
    "{a",
    "a: b: c",
    "&a [*a]",
    "*a",
    "é",
    "模型",
]
HOSTILE += [
    "\u202e",
    "\U0001f600",
    "\n",
    "a\nb",
    "\t",
    "\x1b[31m",
    "a" * 5000,
    "9" * 5000,
    "--epochs",
    "-",
]
HOSTILE += ["!!python/name:os.getpid", "!!python/object/apply:os.mkdir [planted]", "${HOME}"]
HOSTILE += ['{"class_path": "os.mkdir", "init_args": {"path": "planted"}}', "__import__('os')"]
HOSTILE += [
    "hf-hub:nobody/nothing",
    "hf_hub:nobody/nothing",
    "local-dir:.",
    "../outside",
    "/proc/x",
]
HOSTILE += ["resnet18.no_such_tag", "imagefolder", "cifar10", "tiny-imagenet", "evil.pth", "\0"]
HOSTILE += [[], {}, [[]], [None], [math.nan], [-1], ["é", 1], {"é": []}, {1: 2}, {"x": math.inf}]
HOSTILE += [{"checkpoint_path": "evil.pth"}, {"pretrained": True}, {"num_classes": -1}]
HOSTILE += [{"no_such_argument": 1}, {"pretrained_cfg": {"file": "evil.pth"}, "pretrained": True}]
UNKNOWN = ["temprature", "Epochs", "epoch", "é", "", "__class__", "config.x", "a.b.c", "self", "0"]


def is_int(least):
    return lambda x: type(x) is int and x >= least


def is_number(least, most=math.inf, above=False):
    def check(x):
        is_finite = type(x) in (int, float) and math.isfinite(x)
        return is_finite and (least < x if above else least <= x) and x <= most

    return check


def one_of(*values):
    return lambda x: any(x == value and type(x) is type(value) for value in values)


def each(check):
    return lambda x: type(x) is list and all(map(check, x))


def or_none(check):
    return lambda x: x is None or check(x)


def is_text(x):
    return type(x) is str


def is_kwargs(x):
    return type(x) is dict and all(map(is_text, x)) and not (x.keys() & {"checkpoint_path"})


PROTOCOLS = ["torch", "sklearn", "knn", "paper", "finetune", "few-shot", "corruptions", "shift"]
PROTOCOLS += ["ood", "mutual-information"]
POSITIVE, COUNT = is_number(0, above=True), is_int(1)
# What a recipe may start with, written from the help and not from the code.
LEGAL = {
    **dict.fromkeys(["dataset"], one_of("digits", ["digits"], [])),
    **dict.fromkeys(["data_dir", "output_dir", "device"], lambda x: True),  # the file system says
    **dict.fromkeys(
        ["download", "pretrained", "keep_decoded", "random_init", "online_probe"],
        one_of(False, True),
    ),
    **dict.fromkeys(
        ["compile", "resume", "overwrite", "positive_views", "report"], one_of(False, True)
    ),
    **dict.fromkeys(["head_batch_norm", "sync_batchnorm"], one_of(False, True)),
    **dict.fromkeys(["projection_dim", "epochs", "knn_k", "devices", "num_nodes"], COUNT),
    **dict.fromkeys(["memory_bank_size", "paper_epochs", "finetune_epochs", "step_size"], COUNT),
    **dict.fromkeys(["seed", "knn_every_n_epochs", "max_broken_images"], is_int(0)),
    "keep_every_n_epochs": is_int(0),
    "information_steps": COUNT,
    "few_shots": lambda x: x != [] and each(COUNT)(x),
    "few_shot_episodes": is_int(2),
    **dict.fromkeys(["corrupted_images", "ood_k"], COUNT),
    # Not used without their protocols; the file system says.
    **dict.fromkeys(
        ["shift_dataset", "shift_data_dir", "ood_dataset", "ood_data_dir"], or_none(is_text)
    ),
    **dict.fromkeys(["temperature", "mix_temperature", "base_temperature", "alpha"], POSITIVE),
    **dict.fromkeys(["paper_learning_rate", "finetune_learning_rate"], POSITIVE),
    **dict.fromkeys(["learning_rate", "base_learning_rate"], or_none(POSITIVE)),
    **dict.fromkeys(["weight_decay", "warmup_epochs"], or_none(is_number(0))),
    **dict.fromkeys(["mix_weight", "gradient_clip"], is_number(0)),
    "mixing": one_of("mixup", "cutmix", "mask", "mixup-or-cutmix"),
    "optimizer": one_of("auto", "sgd", "adamw", "lars"),
    "accumulate": COUNT,
    "max_steps": or_none(COUNT),
    # For streams, for Hugging Face datasets, and the name of a function.
    **dict.fromkeys(["steps_per_epoch", "image_column", "label_column"], one_of(None)),
    "transform": one_of(None, "lightly.transforms:SimCLRTransform"),
    "final_momentum": or_none(is_number(0, 1)),
    "mix_probability": is_number(0, 1),
    "chunk_size": is_int(0),
    **dict.fromkeys(["exit_weight", "contrast_weight"], is_number(0)),
    "image_size": or_none(COUNT),
    "min_scale": or_none(is_number(0, 1, above=True)),
    "augmentations": one_of("full", "crop-flip"),
    "train_fraction": is_number(0, 1, above=True),
    "backbone": lambda x: one_of("test_resnet", "test_vit")(x) or each(is_text)(x),
    "backbone_dir": one_of([]),
    "stem": or_none(one_of("auto", "timm", "small")),
    "backbone_kwargs": is_kwargs,
    "batch_size": is_int(1),
    "augment": one_of("auto", "device", "workers"),
    "logger": each(one_of("csv", "tensorboard", "wandb", "mlflow")),
    "protocol": each(one_of(*PROTOCOLS)),
    "num_workers": or_none(is_int(0)),
    "accelerator": one_of("auto", "cpu"),
    "precision": one_of("auto", "32-true", "16-mixed", "bf16-mixed"),
    "momentum": is_number(0, 1),
    "objective": lambda x: is_text(x) and ("-" in x or x in ("supcon", "simclr")),
    "exits": each(is_int(1)),
    "subnetwork": one_of("fc", "small", "same"),
    "subnetwork_weight": or_none(is_number(0)),
    "label_fractions": each(is_number(0, 1, above=True)),
}


class Started(BaseException):
    """The checks are over and the work would begin."""


class Harness:
    """Runs recipes with options until they would start.

    Attributes:
        accepted: The options that the last recipe has started with.
    """

    def __init__(self, monkeypatch, folder):
        monkeypatch.chdir(folder)
        import huggingface_hub.constants
        import pytorch_lightning
        import torchvision.datasets.utils

        def start(*args, **kwargs):
            raise Started

        def offline(*args, **kwargs):
            raise urllib.error.URLError("offline")

        self.monkeypatch, self.folder = monkeypatch, folder
        self.accepted, self.parsed = {}, {}
        monkeypatch.setattr(pytorch_lightning.Trainer, "fit", start)
        monkeypatch.setattr("mixco_lightly.evaluation.evaluator.extract_parts", start)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", offline)
        # A training completes its options; evaluate's are those that the parser returns.
        pretraining = importlib.import_module("mixco_lightly.training.pretraining")
        self.wrap(pretraining, "prepare_run", lambda args, _: self.accepted.update(args[1]))
        self.wrap(command_line, "parse_options", lambda _, config: self.parsed.update(vars(config)))
        (folder / "evil.pth").write_bytes(pickle.dumps(Planted()))

    def wrap(self, module, function, record):
        inner = getattr(module, function)

        def wrapped(*args):
            result = inner(*args)
            record(args, result)
            return result

        self.monkeypatch.setattr(module, function, wrapped)

    def run(self, recipe, arguments):
        """Gives what is wrong with how the recipe took it; "" if nothing is."""
        self.accepted, self.parsed = {}, {}
        self.monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *arguments])
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
        except Started:
            self.accepted = self.accepted or self.parsed
            illegal = [
                f"{name} {value!r}"
                for name, value in self.accepted.items()
                if not LEGAL[name](value)
            ]
            return f"started with {', '.join(illegal)}" if illegal else ""
        except SystemExit as stop:
            line = stop.code if isinstance(stop.code, str) else err.getvalue().strip("\n")
            lines = [x for x in line.splitlines() if x.startswith("error: ")]
            if stop.code in (0, None):
                return f"ended as if all were well: {out.getvalue()[-200:]}"
            if len(lines) != 1 or "\n" in line.partition("error: ")[2]:
                return f"not one line: {line[-300:]!r}"
            return ""
        except Exception as error:
            return f"traceback of {type(error).__name__}: {str(error)[:300]}"
        return "ended without starting"


def load_page(recipe):
    """The names that a recipe's page defines and imports."""
    return runpy.run_path(str(RECIPES / f"{recipe}.py"))


def draw(recipe, fields, rng):
    """Options of a trial as command line arguments; some of them stand in a file."""
    changes = {}
    for _ in range(rng.choice([1, 1, 2, 3])):
        pool = HOSTILE if rng.random() < 0.3 else PLAUSIBLE
        name = rng.choice(UNKNOWN) if rng.random() < 0.06 else rng.choice(fields)
        changes[name] = rng.choice(pool)
    options = BASE[recipe] | {"output_dir": "out", "overwrite": True} | changes
    in_file = {name: x for name, x in options.items() if rng.random() < 0.5}
    arguments = []
    if in_file:
        # Half of the texts stand there as they are, for YAML to make of them what it does.
        lines = []
        for name, value in in_file.items():
            if isinstance(value, str) and rng.random() < 0.5 and "\0" not in value:
                lines.append(f"{name}: {value}\n")
            else:
                lines.append(yaml.safe_dump({name: value}, allow_unicode=rng.random() < 0.5))
        with open("options.yaml", "w", encoding="utf-8") as file:
            file.writelines(lines)
        arguments += ["--config", "options.yaml"]
    for name in sorted(options.keys() - in_file.keys()):
        values = options[name] if isinstance(options[name], list) else [options[name]]
        texts = [
            json.dumps(x) if isinstance(x, dict | list | bool | None) else str(x) for x in values
        ]
        if rng.random() < 0.3 and len(texts) == 1:
            arguments.append(f"--{name}={texts[0]}")
        else:
            arguments += [f"--{name}", *texts]
    return arguments, changes


def fuzz(trials, monkeypatch, folder):
    """Runs the trials; fails with all that was wrong."""
    harness = Harness(monkeypatch, folder)
    fields = {
        recipe: [f.name for f in dataclasses.fields(load_page(recipe)[config])]
        for recipe, config in CONFIGS.items()
    }
    outcomes, wrong = Counter(), []
    for trial in range(trials):
        rng = random.Random(trial)
        recipe = rng.choice([*BASE, "moco"])
        arguments, changes = draw(recipe, fields[recipe], rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problem = harness.run(recipe, arguments)
        if (folder / "planted").exists() or (folder.parent / "planted").exists():
            problem = "code was executed"
            (folder / "planted").unlink()
        if problem:
            shown = {name: repr(x)[:200] for name, x in changes.items()}
            wrong.append(f"trial {trial}, {recipe}, {shown}: {problem}")
        outcomes["started" if harness.accepted else "refused"] += 1
    assert not wrong, f"{len(wrong)} of {trials}:\n" + "\n".join(wrong[:60])
    return outcomes


def test_two_hundred_random_options_start_a_legal_run_or_end_with_one_line(monkeypatch, tmp_path):
    outcomes = fuzz(200, monkeypatch, tmp_path)
    assert min(outcomes["started"], outcomes["refused"]) > 5


@pytest.mark.slow
def test_ten_thousand_random_options_start_a_legal_run_or_end_with_one_line(monkeypatch, tmp_path):
    outcomes = fuzz(10_000, monkeypatch, tmp_path)
    assert min(outcomes["started"], outcomes["refused"]) > 500
