"""The presets against the figures of the authors' code, and of the decisions written in them."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
import yaml
from lightly.transforms.gaussian_blur import GaussianBlur
from lightly.transforms.rotation import RandomRotate
from torchvision.transforms import v2

from mixco_lightly import create_backbone
from mixco_lightly.data.catalogue import get_dataset
from mixco_lightly.data.transforms import create_pretrain_transform, create_test_transform

RECIPES = Path(__file__).parents[2] / "recipes"
PRESETS = RECIPES / "presets"
RESULTS = RECIPES / "results"

# Lee-Gihun/MixCo-Mixup-Contrast at commit 8374aac: the script for TinyImageNet with ResNet-18.
AUTHORS = {
    "backbone": "resnet18",
    "backbone_kwargs": {"zero_init_last": False},
    "stem": "timm",
    "image_size": 224,
    "min_scale": 0.2,
    "projection_dim": 128,
    "epochs": 100,
    "batch_size": 128,
    "warmup_epochs": 0,
    "mix_weight": 1.0,
    "alpha": 1.0,
    "precision": "32-true",
}
AUTHORS_MOCO = AUTHORS | {
    "memory_bank_size": 65536,
    "momentum": 0.999,
    "temperature": 0.2,
    "mix_temperature": 0.05,
    "learning_rate": 0.015,
    "weight_decay": 1e-4,
}
AUTHORS_SIMCLR = AUTHORS | {
    "temperature": 0.5,
    "mix_temperature": 0.5,
    "learning_rate": 0.15,
    "weight_decay": 1e-6,
}
# Decided here: the authors do not pretrain on CIFAR.
CIFAR = {"image_size": 32, "stem": "small"}
CIFAR_MOCO = AUTHORS_MOCO | CIFAR | {"memory_bank_size": 4096, "momentum": 0.99}
EXPECTED = {
    "tiny-imagenet-moco": {"dataset": "tiny-imagenet", **AUTHORS_MOCO},
    "tiny-imagenet-simclr": {"dataset": "tiny-imagenet", **AUTHORS_SIMCLR},
    "cifar10-moco": {"dataset": "cifar10", **CIFAR_MOCO},
    "cifar10-simclr": {"dataset": "cifar10", **AUTHORS_SIMCLR, **CIFAR},
    "cifar100-moco": {"dataset": "cifar100", **CIFAR_MOCO},
    "cifar100-simclr": {"dataset": "cifar100", **AUTHORS_SIMCLR, **CIFAR},
}
# From the authors' code: kibok90/imix at d40fabe, szq0214/Un-Mix at 0911f77; for
# MixMask the temperature of the command in its README, kirill-vish/MixMask at 392a0e7.
_SMALL = {"dataset": "cifar10", **CIFAR, "backbone_kwargs": {"zero_init_last": False}}
_SMALL |= {"projection_dim": 128, "memory_bank_size": 4096, "precision": "32-true"}
UNMIX = _SMALL | {
    "backbone": "resnet18",
    "min_scale": 0.08,
    "epochs": 1000,
    "batch_size": 512,
    "learning_rate": 0.06,
    "weight_decay": 5e-4,
    "warmup_epochs": 0,
    "temperature": 0.1,
    "mix_weight": 1.0,
    "mixing": "mixup-or-cutmix",
    "pairing": "reversed",
    "momentum": 0.99,
}
FAMILY = {
    "cifar10-imix": _SMALL
    | {
        "backbone": "resnet50",
        "min_scale": 0.2,
        "epochs": 4000,
        "batch_size": 256,
        "learning_rate": 0.125,
        "weight_decay": 1e-4,
        "warmup_epochs": 10,
        "temperature": 0.2,
        "mixing": "mixup",
        "alpha": 1.0,
        "momentum": 0.999,
    },
    "cifar10-unmix": UNMIX | {"alpha": 1.0},
    "cifar10-mixmask": UNMIX | {"temperature": 0.2, "mixing": "mask"},
}
# Brightness, contrast, saturation, hue. At 32 pixels half of them, and no blur.
JITTER = {"moco": (0.4, 0.4, 0.4, 0.1), "simclr": (0.8, 0.8, 0.8, 0.2)}


def read(name):
    return yaml.safe_load((PRESETS / f"{name}.yaml").read_text())


def test_every_preset_is_a_small_one_or_a_study_or_has_its_figures_here():
    names = {path.stem for path in PRESETS.glob("*.yaml")}
    settled = {name for name in names if not name.endswith(("-study", "-selfcon"))}
    others = {name for name in settled if not name.startswith(("small-", "start-"))}
    assert others == {*EXPECTED, *FAMILY}


@pytest.mark.parametrize(
    ("name", "commit"),
    [("cifar10-imix", "d40fabe"), ("cifar10-unmix", "0911f77"), ("cifar10-mixmask", "392a0e7")],
)
def test_a_preset_of_the_family_has_its_authors_figures_and_says_what_differs(name, commit):
    assert read(name) == FAMILY[name]
    head, recipe = read_head(name), "imix" if "imix" in name else "unmix"
    for text in (
        f"python recipes/{recipe}.py --config recipes/presets/{name}.yaml",
        "not run here",
        "measured settings begin with start-moco.yaml",
        f"at commit {commit}",
        "Where paper and code differ",
        "What differs here from the code",
        "Not known: ",
        "--mix_weight 0",
    ):
        assert text in head
    assert ("OUR DECISION" in head) == (name == "cifar10-mixmask")


@pytest.mark.parametrize("augmentations", ["few", "usual"])
def test_the_family_studies_give_every_arm_the_same_tries_and_differ_in_nothing_else(augmentations):
    tuning, study = read("family-tuning-study"), read(f"family-{augmentations}-study")
    tries = Counter(name.rpartition(", rate")[0] for name in tuning["changes"])
    tries["plain"] += 1  # the base
    assert len(tries) == 8
    assert set(tries.values()) == {7}
    assert not set(tuning["seeds"]) & set(study["seeds"])
    assert tuning["figures"] == ["held_out_knn_top1"]
    tuned = {"epochs", "protocol", "temperature"}
    assert {k: x for k, x in tuning["base"].items() if k not in tuned} == {
        k: x for k, x in study["base"].items() if k not in tuned
    }
    (group,) = study["groups"]
    assert tuning["groups"][group] == study["groups"][group]
    assert group.startswith(augmentations)
    # Each arm has the options of the best of its two tries at the study's own length.
    choice = read(f"family-choice-{augmentations}-study")
    results = RESULTS / f"family-choice-{augmentations}-study" / "results.json"
    tried = {}
    for run in json.loads(results.read_text())["runs"]:
        arm = run["arm"].partition(", rate")[0]
        tried.setdefault(arm, []).append((run["held_out_knn_top1"], run["arm"]))
    assert {len(runs) for runs in tried.values()} == {2}
    changes = {choice["base_name"]: {}, **choice["changes"]}
    best = {arm: {**choice["base"], **changes[max(runs)[1]]} for arm, runs in tried.items()}
    names = {"MixCo, cutmix": "MixCo cutmix"}
    names["MixCo's pairs, Un-Mix's loss"] = "MixCo pairs, Un-Mix loss"
    chosen = {
        names.get(arm, arm): {**study["base"], "protocol": ["knn"], **change}
        for arm, change in {"plain": {}, **study["changes"]}.items()
        if not arm.startswith("plain,")
    }
    assert chosen == best
    # An image's own earlier key must not be in the queue.
    assert study["base"]["memory_bank_size"] <= 5000 - study["base"]["batch_size"]


def test_all_images_change_the_family_study_in_images_and_epochs_alone():
    small, whole = read("family-usual-study"), read("family-whole-study")
    del small["base"]["train_fraction"]
    for study in (small, whole):
        del study["base"]["epochs"]
    assert whole["base"] == small["base"]
    for arm, change in whole["changes"].items():
        assert arm.startswith("plain,") or change == small["changes"][arm]
    # 25 epochs of 5.5 and of 7 units for each image, beside 4 of plain training.
    longer = {arm: x["epochs"] for arm, x in whole["changes"].items() if "plain," in arm}
    assert sorted(longer.values()) == [round(25 * units / 4) for units in (5.5, 7)]
    assert all(f"plain, {epochs} epochs" == arm for arm, epochs in longer.items())


PAPER = ["tiny-imagenet", "cifar10", "cifar100"]


@pytest.mark.parametrize("dataset", PAPER)
def test_a_papers_table_has_the_settings_of_its_presets_but_for_size_and_precision(dataset):
    study = read(f"paper-{dataset}-study")
    own = {"data_dir", "protocol", "random_init", "mix_weight"}
    for group, method in [("MoCo v2", "moco"), ("SimCLR", "simclr")]:
        preset = read(f"{dataset}-{method}")
        assert preset.pop("precision") == "32-true"  # here it is the machine's choice
        if dataset == "tiny-imagenet":
            preset |= {"image_size": 64, "stem": "small"}
        assert study["groups"][group]["recipe"] == method
        options = {**study["base"], **study["groups"][group], **study["changes"]["MixCo"]}
        options = {name: x for name, x in options.items() if name not in {*own, "recipe"}}
        assert options == {name: x for name, x in preset.items() if name != "mix_weight"}
    assert study["base"]["mix_weight"] == 0
    assert study["changes"] == {"MixCo": {"mix_weight": 1}}
    assert study["seeds"] == [0, 1, 2]
    # Backbones are evaluated on what they were pretrained on and, as by the authors, on CIFAR.
    names = {"tiny-imagenet": "TinyImageNet", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
    measured = PAPER if dataset == "tiny-imagenet" else [dataset]
    assert {name: x["dataset"] for name, x in study["transfer"].items()} == {
        names[name]: name for name in measured
    }
    assert all(options["protocol"] == ["paper"] for options in study["transfer"].values())
    # No figure of MixCo's tables is known.
    assert len(study["published"]) == len(measured)
    assert not any("values" in block for block in study["published"].values())


def test_selfcons_table_has_the_settings_of_its_preset_and_the_figures_of_the_abstract():
    study = read("paper-selfcon-study")
    options = {**study["base"], **study["changes"]["SelfCon in one stage"]}
    own = {"data_dir", "protocol", "random_init"}
    preset = read("cifar100-one-stage-selfcon")
    assert preset.pop("precision") == "auto"  # the default
    assert {name: x for name, x in options.items() if name not in own} == preset
    assert study["base"]["objective"] == "cross-entropy"
    assert study["changes"]["cross-entropy of both exits"] == {
        "objective": "one-stage",
        "contrast_weight": 0,
    }
    assert study["seeds"] == [0, 1, 2]
    # 76.45, and 4.36 points ahead of cross-entropy.
    assert study["published"]["classifier_top1"]["values"] == {
        "cross-entropy": 72.09,
        "SelfCon in one stage": 76.45,
    }


# Of each preset to start with: its study and group, and where the longer run's figures are.
STARTS = {
    "start-moco": ("augmentation-study", None, []),
    "start-moco-crop-flip": (
        "small-study", "plain at its best temperature, 0.05", ["long-study"]
    ),
    "start-simclr": ("simclr-study", "usual augmentations", []),
    "start-simclr-crop-flip": ("simclr-study", "few augmentations", []),
    "start-imix": ("family-usual-study", "usual augmentations", []),
    "start-imix-crop-flip": ("family-few-study", "few augmentations", []),
}  # fmt: skip


def arm_of(name):
    """The arm of the study that a preset to start with repeats."""
    return "i-Mix" if "imix" in name else "MixCo"


def read_head(name):
    """The comment at the beginning of a preset."""
    lines = (PRESETS / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def test_there_is_one_preset_to_start_with_for_each_method_and_augmentation():
    starts = {path.stem: read(path.stem) for path in PRESETS.glob("start-*.yaml")}
    assert starts.keys() == STARTS.keys()
    for name, preset in starts.items():
        assert preset["augmentations"] == ("crop-flip" if "crop-flip" in name else "full")
        recipe = name.split("-")[1]
        assert f"python recipes/{recipe}.py --config recipes/presets/{name}.yaml" in read_head(name)
        assert f"--config {name} " in (RECIPES / f"{recipe}.py").read_text()


@pytest.mark.parametrize("name", STARTS)
def test_a_preset_to_start_with_has_the_options_of_its_studys_arm(name):
    study, group, longer = STARTS[name]
    for each in [study, *longer]:
        plan = read(each)
        common = plan["groups"][group] if "groups" in plan else {}
        arm = {**plan["base"], **common, **plan["changes"][arm_of(name)]}
        arm.pop("recipe", None)
        if each in longer:
            assert f"--epochs {arm['epochs']}" in read_head(name)
            arm["epochs"] = read(name)["epochs"]
        # Where the images are, and what is measured beside, is the user's.
        for own in ("data_dir", "random_init"):
            arm.pop(own)
        assert read(name) == {option: value for option, value in arm.items() if value is not None}


@pytest.mark.parametrize("name", STARTS)
def test_a_preset_to_start_with_has_the_figures_of_its_study_and_no_others(name):
    study, group, longer = STARTS[name]
    head, expected = read_head(name), []
    for each in [study, *longer]:
        assert f"recipes/results/{each}" in head
        table = (RECIPES / "results" / each / "results.md").read_text().splitlines()
        rows = [line.strip("| ").split(" | ") for line in table if line.startswith("| ")]
        rows = [dict(zip(rows[0], row, strict=False)) for row in rows]
        in_group = [row for row in rows if row.get("group") in (group, None)]
        for arm in ("plain", arm_of(name)):
            (row,) = [row for row in in_group if row["arm"] == arm]
            assert f"{row['seeds']} seeds" in head
            expected += [row["linear, top-1 %"], row["kNN, top-1 %"]]
    assert sorted(re.findall(r"\d+\.\d+ ± \d+\.\d+", head)) == sorted(expected)
    assert "mean ± standard deviation" in head


def test_every_preset_with_the_authors_settings_says_so_at_once_and_names_a_measured_one():
    authors = [*EXPECTED, *FAMILY, "cifar100-selfcon", "cifar100-one-stage-selfcon"]
    for name in authors:
        assert "the authors' settings" in " ".join(read_head(name).split()[:40])
    for name in EXPECTED:
        recipe = name.rpartition("-")[2]
        assert f"measured settings begin with start-{recipe}.yaml" in read_head(name)
    for path in PRESETS.glob("*.yaml"):
        says = "the authors' settings" in read_head(path.stem)
        assert says == (path.stem in authors), path.stem
    for name, study, figures in [
        ("cifar10-moco", "full-tuning-study", ["29.70", "36.30"]),
        ("cifar10-simclr", "simclr-tuning-study", ["33.60", "39.40"]),
    ]:
        table = (RECIPES / "results" / study / "results.md").read_text()
        for twin in (name, name.replace("10", "100")):
            assert study in read_head(twin)
            assert all(f"{x} %" in read_head(twin) and f"| {x} |" in table for x in figures)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_preset_has_the_figures_of_the_authors_or_of_the_decision(name):
    assert read(name) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_preset_says_whose_figures_it_has_and_how_to_change_and_evaluate_it(name):
    comments = " ".join(
        line.lstrip("# ")
        for line in (PRESETS / f"{name}.yaml").read_text().splitlines()
        if line.startswith("#")
    )
    recipe = name.rpartition("-")[2]
    for text in (
        f"python recipes/{recipe}.py --config recipes/presets/{name}.yaml",
        "add --mix_weight 0",
        "--backbone resnet34 or --backbone resnet50",
        "--protocol paper",
        "not known",
        "8374aac" if name.startswith("tiny-") else "OUR DECISION",
    ):
        assert text in comments
    assert ("Where paper and code differ" in comments) == name.startswith("tiny-")


@pytest.mark.parametrize("name", EXPECTED)
def test_the_augmentations_of_a_preset_have_the_authors_strengths(name):
    preset, method = read(name), name.rpartition("-")[2]
    size = preset["image_size"]
    views = create_pretrain_transform(
        method, get_dataset(preset["dataset"]).facts, size, min_scale=preset["min_scale"]
    ).transforms
    assert len(views) == 2
    strength = 0.5 if size == 32 else 1.0
    for view in views:
        steps = view.transforms if isinstance(view, v2.Compose) else view.transform.transforms
        found = {}
        for step in steps:
            match step:
                case v2.RandomResizedCrop():
                    found["crop"] = (tuple(step.size), tuple(step.scale))
                case v2.RandomHorizontalFlip():
                    found["flip"] = step.p
                case v2.RandomApply():
                    (jitter,) = step.transforms
                    found["jitter probability"] = step.p
                    found["jitter"] = tuple(
                        round(high - (0 if factor == "hue" else 1), 6)
                        for factor in ("brightness", "contrast", "saturation", "hue")
                        for high in [getattr(jitter, factor)[1]]
                    )
                case v2.RandomGrayscale():
                    found["gray"] = step.p
                case GaussianBlur():
                    found["blur"] = (step.prob, tuple(step.sigmas))
                case v2.RandomVerticalFlip():
                    assert step.p == 0
                case RandomRotate():
                    assert step.prob == 0
                case v2.Normalize():
                    found["mean"] = tuple(step.mean)
        assert found == {
            "crop": ((size, size), (0.2, 1.0)),
            "flip": 0.5,
            "jitter probability": 0.8,
            "jitter": pytest.approx([strength * factor for factor in JITTER[method]]),
            "gray": 0.2,
            "blur": (0.0 if size == 32 else 0.5, (0.1, 2)),
            "mean": {
                "tiny-imagenet": (0.485, 0.456, 0.406),
                "cifar10": (0.4914, 0.4822, 0.4465),
                "cifar100": (0.5071, 0.4867, 0.4408),
            }[preset["dataset"]],
        }


def test_images_of_64_pixels_are_evaluated_as_by_the_authors_at_256_cropped_to_224():
    resize, crop, *_ = create_test_transform(get_dataset("tiny-imagenet").facts, 224).transforms
    assert resize.size == 256
    assert tuple(crop.size) == (224, 224)


@pytest.mark.parametrize("network", ["resnet18", "resnet34", "resnet50"])
def test_the_networks_of_the_presets_start_as_torchvisions(network):
    # torchvision starts the last BatchNorm of a residual branch at one, timm at zero.
    torch.manual_seed(0)
    preset = read("tiny-imagenet-moco")
    with torch.device("meta"):
        assert timm.create_model(network).conv1.kernel_size == (7, 7)
    backbone = create_backbone(
        network, preset["image_size"], stem=preset["stem"], **preset["backbone_kwargs"]
    )
    assert backbone.model.conv1.stride == (2, 2)
    assert isinstance(backbone.model.maxpool, torch.nn.MaxPool2d)
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in norms)
    assert backbone.feature_dim == (2048 if network == "resnet50" else 512)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_run_with_a_preset_starts(name, image_folder, tmp_path, run_here):
    tiny = {
        "dataset": "imagefolder",
        "data_dir": image_folder,
        "image_size": 16,
        "backbone": "test_resnet",
        "epochs": 1,
        "batch_size": 12,
        "num_workers": 0,
        "knn_k": 5,
        "accelerator": "cpu",
        "output_dir": tmp_path / "run",
    }
    if name.endswith("moco"):
        tiny["memory_bank_size"] = 64
    overrides = [word for key, value in tiny.items() for word in (f"--{key}", value)]
    recipe = name.rpartition("-")[2]
    code, _, error = run_here(recipe, "--config", PRESETS / f"{name}.yaml", *overrides)
    assert code == 0, error
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    kept = EXPECTED[name].keys() - tiny.keys()
    assert {key: recorded[key] for key in kept} == {key: EXPECTED[name][key] for key in kept}
