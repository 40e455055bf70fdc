import typing

import pytest
import torch
from torchvision.transforms import PILToTensor

from mixco_lightly import MultiExitBackbone, ProbeResult, create_backbone, linear_probe
from mixco_lightly.data.catalogue import create_train_test, get_dataset
from mixco_lightly.evaluation import linear_protocols
from mixco_lightly.evaluation.calibration import add_calibration
from mixco_lightly.evaluation.evaluator import evaluate_parts
from mixco_lightly.evaluation.exits import exit_probe, select_exit
from mixco_lightly.evaluation.figures import RANDOM_INIT, name_figure, summarise
from mixco_lightly.evaluation.knn import knn_probe
from mixco_lightly.evaluation.linear import linear_scores
from mixco_lightly.evaluation.parts import name_parts
from mixco_lightly.evaluation.protocols import (
    DEFAULT_PROTOCOLS,
    PROTOCOLS,
    ProtocolName,
    SecondDatasetName,
    create_protocols,
)

FACTS = get_dataset("imagefolder").facts
OPTIONS = {"image_size": 16, "num_workers": 0, "knn_k": 3, "device": "cpu"}


@pytest.fixture
def images(image_folder):
    transform = PILToTensor()
    return create_train_test("imagefolder", image_folder, transform, transform)


def test_a_pretraining_runs_call_gives_the_three_probes_of_features(images):
    backbone = create_backbone("test_resnet", 16, stem="timm")
    results, extraction = evaluate_parts(backbone, *images, FACTS, DEFAULT_PROTOCOLS, **OPTIONS)
    assert list(results) == ["backbone"]
    assert list(results["backbone"]) == ["torch", "sklearn", "knn"]
    assert all(result.top1 >= 50 for result in results["backbone"].values())
    assert extraction.train.features.shape == (24, backbone.feature_dim)


def test_the_callers_images_keep_their_transform(images):
    before = [part.transform for part in images]
    evaluate_parts(
        create_backbone("test_resnet", 16, stem="timm"), *images, FACTS, ["knn"], **OPTIONS
    )
    assert [part.transform for part in images] == before
    assert images[0][0][0].dtype == torch.uint8


@pytest.mark.parametrize("solver", ["torch", "sklearn"])
def test_exits_are_parts_whose_results_are_those_of_their_features_alone(images, solver):
    torch.manual_seed(0)
    network = MultiExitBackbone("test_resnet", 16, (1, 2), "fc", "timm")
    results, extraction = evaluate_parts(network, *images, FACTS, [solver, "knn"], **OPTIONS)
    exits = ["subnetwork_1", "subnetwork_2", "backbone"]
    assert name_parts(network) == [*exits, "ensemble"]
    assert set(results) == {*exits, "ensemble"}
    choices = {"learning_rate": linear_protocols.LEARNING_RATES, "C": linear_protocols.C_VALUES}
    for index, name in enumerate(exits):
        train, test = (select_exit(x, index) for x in (extraction.train, extraction.test))
        assert results[name]["knn"] == knn_probe(train, test, k=3)
        scores, _ = linear_scores(train, test, solver, **choices)
        expected = linear_probe(train, test, solver, **choices)
        if solver == "torch":
            expected = add_calibration(expected, scores, test.targets)
        assert results[name][solver] == expected
    together = exit_probe(extraction.train, extraction.test, solver=solver, **choices)
    assert list(results["ensemble"]) == [solver]  # kNN has no ensemble
    assert results["ensemble"][solver][:3] == together[-1][:3]
    assert list(results["ensemble"][solver].measures) == list(expected.measures)


def test_one_label_a_class_is_noted_for_the_ensemble_too(images):
    train = images[0]
    first = [train.targets.index(target) for target in (0, 1)]
    for name in ("samples", "targets"):
        setattr(train, name, [getattr(train, name)[index] for index in first])
    network = MultiExitBackbone("test_resnet", 16, (2,), "fc", "timm")
    results, _ = evaluate_parts(network, *images, FACTS, ["torch"], **OPTIONS)
    assert list(results) == ["backbone", "subnetwork", "ensemble"]
    assert all("one image a class" in part["torch"].note for part in results.values())


def test_an_unknown_protocol_is_named_before_anything_is_extracted(images):
    with pytest.raises(ValueError, match="no protocol 'svm'; choose from: torch, sklearn, knn"):
        evaluate_parts(None, *images, FACTS, ["knn", "svm"], **OPTIONS)


def test_every_protocol_has_a_name_for_options_and_settings_for_records():
    names = (typing.get_args(x) for x in (ProtocolName, SecondDatasetName))
    assert list(PROTOCOLS) == [name for group in names for name in group]
    assert not any(PROTOCOLS[name].needs_images for name in DEFAULT_PROTOCOLS)
    with_ensemble = {"torch", "sklearn", "corruptions", "shift"}
    assert {name for name in PROTOCOLS if PROTOCOLS[name].has_ensemble} == with_ensemble
    known = create_protocols(
        knn_k=5, paper_epochs=2, finetune_learning_rate=0.1, step_size=8, few_shots=[2],
        few_shot_episodes=7, corrupted_images=9, shift_dataset="a", ood_dataset="b", ood_k=4,
    )  # fmt: skip
    rates = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
    assert {name: protocol.settings for name, protocol in known.items()} == {
        "torch": {"learning_rates": rates},
        "sklearn": {"C_values": [0.0001, 0.001, 0.01, 0.1, 1.0]},
        "knn": {"k": 5},
        "paper": {"epochs": 2, "learning_rate": 3.0, "batch_size": 8},
        "finetune": {"epochs": 30, "learning_rate": 0.1, "batch_size": 8},
        "few-shot": {"shots": [2], "episodes": 7},
        "corruptions": {"learning_rates": rates, "max_images": 9},
        "shift": {"learning_rates": rates, "dataset": "a"},
        "ood": {"dataset": "b", "k": 4},
    }


def test_a_protocol_without_an_ensemble_says_so():
    with pytest.raises(ValueError, match="knn has no ensemble"):
        PROTOCOLS["knn"].measure_ensemble([], [])


def test_figures_are_named_by_part_and_protocol():
    assert name_figure("subnetwork", "knn") == "subnetwork_knn_top1"
    assert name_figure("ensemble", "classifier") == "ensemble_classifier_top1"
    results = {"torch": ProbeResult(1.0, 2.0), "sklearn": ProbeResult(3.0, 4.0)}
    parts = {"subnetwork": results, "backbone": results, RANDOM_INIT: results}
    assert summarise(parts) == {
        "subnetwork_linear_top1": 1.0,
        "subnetwork_sklearn_top1": 3.0,
        "linear_top1": 1.0,
        "sklearn_top1": 3.0,
        "random_init_linear_top1": 1.0,
        "random_init_sklearn_top1": 3.0,
        "linear_top5": 2.0,
    }
    assert summarise({"backbone": {}}) == {}
