"""The SelfCon recipe as its users call it, and its presets."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from mixco_lightly import create_backbone, load_backbone
from mixco_lightly.evaluation import image_probes, parts
from mixco_lightly.models.selfcon import SelfCon, SelfConClassifier
from tests.run_recipe import TINY
from tests.training.test_devices import launch

RECIPES = Path(__file__).parents[2] / "recipes"
VIEWS = {
    "selfcon-s": 1,
    "selfcon-m": 2,
    "selfcon-su": 1,
    "selfcon-mu": 2,
    "supcon-s": 1,
    "supcon": 2,
    "simclr": 2,
    "cross-entropy": 1,
    "one-stage": 1,
}
HAVE_EXITS = {name for name in VIEWS if name.startswith("selfcon")} | {"one-stage"}
FIGURES = {
    *("linear_top1", "linear_top5", "sklearn_top1", "knn_top1"),
    *("random_init_linear_top1", "random_init_sklearn_top1", "random_init_knn_top1"),
}


def tiny_run(folder, *options):
    return [
        *TINY,
        *("--dataset", "imagefolder", "--data_dir", folder, "--image_size", 16),
        *("--epochs", 1, "--batch_size", 12),
        *options,
    ]


@pytest.fixture
def run(run_here):
    """Runs a recipe in this process; gives its exit code and what it printed."""

    def call(*options, recipe="selfcon"):
        return run_here(recipe, *options)

    return call


@pytest.mark.parametrize("objective", VIEWS)
def test_each_objective_trains_on_its_views_and_measures_its_exits(
    objective, image_folder, tmp_path, run, monkeypatch
):
    batches = []
    for module in (SelfCon, SelfConClassifier):
        step = module.training_step

        def spy(self, batch, batch_idx, step=step):
            batches.append(batch)
            return step(self, batch, batch_idx)

        monkeypatch.setattr(module, "training_step", spy)
    folder = tmp_path / "run"
    options = ["--objective", objective, "--output_dir", folder]
    code, printed, error = run(*tiny_run(image_folder, *options))
    assert code == 0, error
    # Two steps, and no view that the objective does not need.
    assert [[len(images) for images in views] for views, *_ in batches] == [
        [12] * VIEWS[objective]
    ] * 2

    summary = json.loads((folder / "summary.json").read_text())
    figures = set(FIGURES)
    if objective in HAVE_EXITS:
        figures |= {f"subnetwork_{name}_top1" for name in ("linear", "sklearn", "knn")}
        figures |= {f"ensemble_{name}_top1" for name in ("linear", "sklearn")}
    if objective in ("cross-entropy", "one-stage"):
        figures.add("classifier_top1")
    if objective == "one-stage":
        figures |= {"subnetwork_classifier_top1", "ensemble_classifier_top1"}
    assert {name for name in summary if "_top" in name} == figures
    assert all(0 <= summary[name] <= 100 for name in figures)
    assert ("Not measured for the ensemble: knn." in printed) == (objective in HAVE_EXITS)
    assert ("ensemble" in printed) == (objective in HAVE_EXITS)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["exits"] == ([2] if objective in HAVE_EXITS else [])
    # A run without exits can be resumed too.
    code, printed, _ = run("--config", folder / "config.yaml", "--print_config")
    assert code == 0
    assert yaml.safe_load(printed)["exits"] == config["exits"]
    backbone = load_backbone(folder)
    assert backbone(torch.rand(2, 3, 16, 16)).shape == (2, 96)


def test_the_heads_have_batch_norm_where_the_option_says_so(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from selfcon import SelfConConfig, create_model

    for option in (True, False):
        config = SelfConConfig(dataset="digits", head_batch_norm=option)
        model = create_model(create_backbone("test_resnet", 16), config)
        found = any(isinstance(x, nn.BatchNorm1d) for x in model.projection_heads.modules())
        assert found == option


def test_the_backbones_figures_are_those_of_evaluate_and_all_exits_are_extracted_once(
    image_folder, tmp_path, run, monkeypatch
):
    # Of noise the classes tell nothing, so that different features have different figures.
    rng = np.random.default_rng(0)
    for path in image_folder.glob("*/*/*.png"):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    extracted = []
    extract = parts.extract_features

    def spy(module, *args, **kwargs):
        extracted.append(type(module).__name__)
        return extract(module, *args, **kwargs)

    monkeypatch.setattr(parts, "extract_features", spy)
    options = ["--exits", 1, 2, "--subnetwork", "small", "--output_dir", tmp_path / "run"]
    code, _, error = run(*tiny_run(image_folder, *options))
    assert code == 0, error
    # Training and test images of the trained network, then of the initial backbone.
    assert extracted == ["StackedExits"] * 2 + ["Backbone"] * 2
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"subnetwork_1_linear_top1", "subnetwork_2_linear_top1"} <= summary.keys()

    quiet = ["--num_workers", 0, "--knn_k", 5]
    code, _, error = run("--backbone_dir", tmp_path / "run", *quiet, recipe="evaluate")
    assert code == 0, error
    records = json.loads((tmp_path / "run" / "evaluation.json").read_text())["results"]
    results = {record["protocol"]: record for record in records}
    names = {"torch": "linear_top1", "sklearn": "sklearn_top1", "knn": "knn_top1"}
    for protocol, name in names.items():
        assert results[protocol]["top1"] == pytest.approx(summary[name])


def few_epochs(module, monkeypatch, epochs=2):
    """Shortens the protocols that train on images; gives what each was called with."""
    calls = []

    def shorten(name):
        function = getattr(module, name)

        def call(network, *args, **kwargs):
            calls.append((name, network))
            return function(network, *args, **{**kwargs, "epochs": epochs})

        monkeypatch.setattr(module, name, call)

    for name in ("paper_probe", "finetune_probe"):
        shorten(name)
    return calls


@pytest.mark.parametrize(
    ("protocols", "parts"),
    [
        (["paper"], ["subnetwork", ""]),
        (["finetune"], ["subnetwork", ""]),
        (["knn"], ["subnetwork", ""]),
        (["sklearn"], ["subnetwork", "", "ensemble"]),
    ],
)
def test_all_parts_are_measured_by_the_protocols_that_were_asked_for(
    protocols, parts, image_folder, tmp_path, run, monkeypatch
):
    monkeypatch.syspath_prepend(str(RECIPES))
    calls = few_epochs(image_probes, monkeypatch)
    folder = tmp_path / "run"
    options = ["--protocol", *protocols, "--output_dir", folder]
    code, printed, error = run(*tiny_run(image_folder, *options))
    assert code == 0, error
    summary = json.loads((folder / "summary.json").read_text())
    assert {name for name in summary if "_top" in name} == {
        f"{part}_{protocol}_top1".removeprefix("_")
        for protocol in protocols
        for part in [*parts, "random_init"]
    }
    lines = [line for line in printed.splitlines() if "Not measured for the ensemble" in line]
    assert len(lines) == ("ensemble" not in parts)
    if lines:  # one line, before the training
        assert printed.index(protocols[0]) < printed.index("epoch 1/1")
    if protocols[0] in ("paper", "finetune"):
        images = torch.rand(3, 3, 16, 16)
        features = [network.eval()(images) for _, network in calls]
        assert [x.shape for x in features] == [(3, 96)] * 3
        assert not torch.equal(features[0], features[1])
        torch.testing.assert_close(features[1], load_backbone(folder).eval()(images))
        assert not torch.equal(features[1], features[2])


def test_mixcos_term_is_added_without_labels_and_logged(image_folder, tmp_path, run):
    options = ["--objective", "selfcon-su", "--mix_weight", 0.5, "--output_dir", tmp_path / "run"]
    code, _, error = run(*tiny_run(image_folder, *options))
    assert code == 0, error
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert rows
    for row in rows:
        total = float(row["contrast"]) + 0.5 * float(row["mix"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
        assert float(row["mix"]) > 0


BAD_OPTIONS = {
    "mixtures with labels": (["--mix_weight", 1], "--mix_weight 1"),
    "no exits": (["--config", "no-exits.yaml"], "--exits"),
    "last stage": (["--exits", 4], "from 1 to 3 of test_resnet"),
    "positive views with labels": (["--positive_views"], "--positive_views"),
    "a star without exits": (["--objective", "supcon", "--subnetwork_weight", 1], "supcon"),
    "unknown objective": (["--objective", "selfcon"], "selfcon-s"),
    "copies of a ViT": (["--backbone", "test_vit", "--subnetwork", "same"], "subnetwork='fc'"),
    "missing folder": (["--data_dir", "nowhere", "--objective", "cross-entropy"], "nowhere"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_input_ends_with_one_line_that_names_it(case, image_folder, tmp_path, run, monkeypatch):
    options, named = BAD_OPTIONS[case]
    monkeypatch.chdir(tmp_path)
    Path("no-exits.yaml").write_text("exits: []")
    code, _, error = run(*tiny_run(image_folder, "--output_dir", tmp_path / "run", *options))
    assert code not in (0, None)
    assert "Traceback" not in error
    assert named in error.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_two_processes_end_with_equal_weights_and_one_summary(image_folder, tmp_path):
    spy = (
        "import sys, torch\n"
        f"sys.path.insert(0, {str(RECIPES)!r})\n"
        "import mixco_lightly.training.progress as progress\n"
        "def write(self, trainer, module):\n"
        "    state = module.state_dict()\n"
        "    kept = {n: x for n, x in state.items() if 'running' not in n and 'num_b' not in n}\n"
        "    torch.save(kept, f'rank{trainer.global_rank}.pt')\n"
        "progress.Speed.on_train_end = write\n"
        "import selfcon\n"
        "selfcon.recipe.main()\n"
    )
    (tmp_path / "spy.py").write_text(spy)
    options = tiny_run(image_folder, "--batch_size", 6, "--output_dir", "run")
    options += ["--objective", "selfcon-mu", "--mix_weight", 1, "--positive_views"]
    options += ["--devices", 2, "--accelerator", "cpu", "--protocol", "knn", "--random_init=false"]
    result = launch("fork", "spy.py", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    weights = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 1
    assert result.stdout.count("Trained for") == 1


# raymin0223/self-contrastive-learning at commit 5e7c2c5: the script for CIFAR-100 and ResNet-18.
AUTHORS = {
    "dataset": "cifar100",
    "image_size": 32,
    "min_scale": 0.2,
    "backbone": "resnet18",
    "backbone_kwargs": {"zero_init_last": False},
    "stem": "small",
    "exits": [2],
    "subnetwork": "fc",
    "projection_dim": 128,
    "batch_size": 1024,
    "weight_decay": 1e-4,
    "warmup_epochs": 10,
    "temperature": 0.1,
    "base_temperature": 0.07,
    "precision": "auto",
}
PRESETS = {
    "cifar100-selfcon": {
        **AUTHORS,
        "objective": "selfcon-s",
        "head_batch_norm": False,
        "epochs": 1000,
        "learning_rate": 0.5,
    },
    # main_ce.py with the weights of its three terms; the temperature of commit 8d10a35.
    "cifar100-one-stage-selfcon": {
        **AUTHORS,
        "objective": "one-stage",
        "epochs": 500,
        "learning_rate": 0.8,
        "exit_weight": 1.0,
        "contrast_weight": 0.8,
    },
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_authors_figures_and_the_recipe_reads_them(name, run):
    path = RECIPES / "presets" / f"{name}.yaml"
    assert yaml.safe_load(path.read_text()) == PRESETS[name]
    code, printed, _ = run("--config", path, "--print_config")
    assert code == 0
    options = yaml.safe_load(printed)
    assert {key: options[key] for key in PRESETS[name]} == PRESETS[name]
    # No mixtures and no stars in the authors' scripts.
    assert (options["mix_weight"], options["subnetwork_weight"]) == (0, None)
    assert not options["positive_views"]


def test_the_presets_have_their_figures_here():
    names = {path.stem for path in (RECIPES / "presets").glob("cifar*-selfcon.yaml")}
    assert names == set(PRESETS)
