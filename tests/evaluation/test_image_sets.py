"""The classifier on corrupted images and on a shifted dataset."""

import numpy as np
import pytest
import torch

from mixco_lightly import Features, MultiExitBackbone
from mixco_lightly.data import ImageArray, get_dataset
from mixco_lightly.data.corruptions import CORRUPTIONS
from mixco_lightly.evaluation.evaluator import evaluate_parts
from mixco_lightly.evaluation.further_protocols import Corruptions, Shift
from mixco_lightly.evaluation.image_sets import create_image_sets, open_second_datasets
from mixco_lightly.evaluation.linear_protocols import TorchProbe
from mixco_lightly.evaluation.parts import Part
from mixco_lightly.evaluation.protocols import PROTOCOLS

FACTS = get_dataset("digits").facts


def make_features(n, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % 2
    return Features(torch.randn(n, 4, generator=generator) + targets[:, None], targets)


def make_images(count=8, classes=("a", "b")):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    pixels[::2] //= 2
    return ImageArray(pixels, [x % len(classes) for x in range(count)], list(classes))


def test_the_same_classifier_is_tested_on_the_shifted_images(setup):
    train, test, shifted = make_features(40, 0), make_features(20, 1), make_features(30, 2)
    part = Part("backbone", None, train, test, {"shifted": shifted})
    outcome = Shift().measure(part, setup)
    expected = TorchProbe().measure(part._replace(test=shifted), setup)
    assert outcome.last == expected.last
    assert outcome.last != TorchProbe().measure(part, setup).last
    ensemble = Shift().measure_ensemble([part, part], [outcome, outcome])
    assert ensemble.last[:2] == outcome.last[:2]


def test_corruption_accuracy_is_the_mean_over_kinds_and_strengths(setup):
    train = make_features(40, 0)
    corrupted = make_features(6 * 3 * 4, 3)
    # Some kinds are easy, some are hopeless.
    features = corrupted.features.clone()
    features[:12] = 10 * (2 * corrupted.targets[:12, None] - 1)
    features[12:24] = -10 * (2 * corrupted.targets[12:24, None] - 1)
    corrupted = Features(features, corrupted.targets)
    part = Part("backbone", None, train, make_features(20, 1), {"corrupted": corrupted})
    result = Corruptions().measure(part, setup).last
    kinds = {name: result.measures[name] for name in CORRUPTIONS}
    assert (kinds["noise"], kinds["blur"]) == (100, 0)
    assert list(result.measures) == ["ECE", *CORRUPTIONS]
    assert result.top1 == pytest.approx(sum(kinds.values()) / 6)


def test_a_network_with_exits_is_measured_on_corrupted_images_in_all_its_parts():
    torch.manual_seed(0)
    network = MultiExitBackbone("test_resnet", 16, (2,), "fc", "timm")
    images = make_images(24), make_images()
    results, extraction = evaluate_parts(
        network, *images, FACTS, ["corruptions"],
        image_size=16, num_workers=0, device="cpu", seed=1,
    )  # fmt: skip
    assert list(results) == ["backbone", "subnetwork", "ensemble"]
    assert extraction.further["corrupted"].features.shape == (18 * 8, 2, network.feature_dim)
    for part in results.values():
        assert set(part["corruptions"].measures) == {"ECE", *CORRUPTIONS}


def test_a_second_dataset_that_is_missing_is_one_error():
    for name in ("shift", "ood"):
        with pytest.raises(ValueError, match=rf"{name} needs a second .* --{name}_data_dir"):
            create_image_sets([PROTOCOLS[name]], make_images(), FACTS, seed=0)
        with pytest.raises(ValueError, match=rf"{name} needs a second .* --{name}_data_dir"):
            open_second_datasets({name: (None, None)})


def test_a_shifted_dataset_must_have_the_same_classes():
    others = {"shifted": make_images(classes=("a", "c"))}
    with pytest.raises(ValueError, match="only one of the two has: b, c"):
        create_image_sets([PROTOCOLS["shift"]], make_images(), FACTS, others, seed=0)
    swapped = {"shifted": make_images(classes=("b", "a"))}
    with pytest.raises(ValueError, match="only one of the two has: their order"):
        create_image_sets([PROTOCOLS["shift"]], make_images(), FACTS, swapped, seed=0)
