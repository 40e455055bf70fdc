"""What a run measures at its end is what evaluate.py finds, whatever precision it trained in."""

import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mixco_lightly import MultiExitBackbone, MutualInformation
from mixco_lightly.backbones.backbone import Backbone
from tests.run_recipe import tiny_run

PRECISIONS = ["32-true", "bf16-mixed", "16-mixed"]
NAMES = {"torch": "linear_top1", "sklearn": "sklearn_top1", "knn": "knn_top1"}


@pytest.fixture
def noise_folder(image_folder):
    """Images whose classes tell nothing, so that other features have other figures."""
    rng = np.random.default_rng(0)
    for path in image_folder.glob("*/*/*.png"):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return image_folder


@pytest.fixture
def outputs(monkeypatch):
    """Features of the 24 training and 12 test images, in eval mode, of each network by its kind."""
    found = {Backbone: [], MultiExitBackbone: []}
    for kind in found:

        def spy(self, images, kind=kind, forward=kind.forward):
            features = forward(self, images)
            if not self.training and len(images) in (24, 12):
                found[kind].append(features)
            return features

        monkeypatch.setattr(kind, "forward", spy)
    return found


def train(run_here, recipe, folder, *options):
    quiet = ["--accelerator", "cpu", "--random_init=false", "--knn_every_n_epochs", 0]
    code, _, error = run_here(recipe, *tiny_run(folder, *quiet, "--epochs", 1, *options))
    assert code == 0, error


def take(found):
    taken = list(found)
    found.clear()
    return taken


def results_of(run):
    records = json.loads((run / "evaluation.json").read_text())["results"]
    return {NAMES[record["protocol"]]: record["top1"] for record in records}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_moco_runs_figures_are_those_that_evaluate_finds(
    precision, noise_folder, tmp_path, run_here, evaluate, outputs
):
    run = tmp_path / "run"
    options = ["--precision", precision, "--batch_size", 6, "--memory_bank_size", 8]
    train(run_here, "moco", noise_folder, *options, "--output_dir", run)
    at_end = take(outputs[Backbone])
    code, _, error = evaluate(
        "--backbone_dir", run, "--num_workers", 0, "--knn_k", 5, "--device", "cpu"
    )
    assert code == 0, error
    afterwards = take(outputs[Backbone])
    assert [len(features) for features in at_end] == [24, 12]
    for features, expected in zip(at_end, afterwards, strict=True):
        assert features.dtype == torch.float32
        assert torch.equal(features, expected)
    summary = json.loads((run / "summary.json").read_text())
    assert results_of(run) == {name: summary[name] for name in NAMES.values()}


@pytest.mark.parametrize(
    "precision", ["bf16-mixed", *(pytest.param(p, marks=pytest.mark.slow) for p in PRECISIONS[::2])]
)
def test_a_selfcon_runs_figures_of_all_exits_are_those_that_evaluate_finds(
    precision, noise_folder, tmp_path, run_here, evaluate, outputs, monkeypatch
):
    run = tmp_path / "run"
    options = ["--precision", precision, "--exits", 1, 2, "--keep_every_n_epochs", 1]
    train(run_here, "selfcon", noise_folder, *options, "--output_dir", run)
    at_end = take(outputs[MultiExitBackbone])
    outputs[Backbone].clear()
    asked = [*NAMES, "mutual-information"]
    # Here only the exits' accuracies beside it matter.
    module = importlib.import_module("mixco_lightly.studies.exit_information")
    estimate = MutualInformation(1.0, 1.0, 1.0)
    monkeypatch.setattr(module, "estimate_mutual_information", lambda *_, **__: estimate)
    code, _, error = evaluate(
        *("--backbone_dir", run, "--protocol", *asked, "--num_workers", 0),
        *("--knn_k", 5, "--device", "cpu"),
    )
    assert code == 0, error
    backbone, exits = take(outputs[Backbone]), take(outputs[MultiExitBackbone])
    assert [len(features[0]) for features in at_end] == [24, 12]
    for features, expected, last in zip(at_end, exits, backbone, strict=True):
        assert {x.dtype for x in features} == {torch.float32}
        assert all(map(torch.equal, features, expected))
        assert torch.equal(features[-1], last)
    summary = json.loads((run / "summary.json").read_text())
    assert results_of(run) == {name: summary[name] for name in NAMES.values()}
    report = json.loads((run / "mutual_information.json").read_text())
    names = ["subnetwork_1_", "subnetwork_2_", "", "ensemble_"]
    assert list(report["checkpoints"][-1]["top1"].values()) == [
        summary[f"{name}linear_top1"] for name in names
    ]
