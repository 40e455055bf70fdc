import math

import pytest
import torch

from mixco_lightly import Features
from mixco_lightly.evaluation.few_shot import few_shot_accuracies, summarise_episodes
from mixco_lightly.evaluation.further_protocols import FewShot
from mixco_lightly.evaluation.parts import Part


def angles(*degrees):
    """Features on the unit circle, stretched: only the direction may count."""
    radians = torch.tensor(degrees).deg2rad()
    lengths = torch.arange(1, len(degrees) + 1).unsqueeze(1)
    return torch.stack([radians.cos(), radians.sin()], dim=1) * lengths


def test_a_feature_belongs_to_the_nearest_mean_of_the_normalised_features():
    # Means of class 0 (0 and 60 degrees) and class 1 (120 and 140 degrees): at 30 with length
    # 0.866, and at 130 with 0.985. The distances are equal at 80.8 degrees.
    train = Features(angles(0.0, 60.0, 120.0, 140.0), torch.tensor([0, 0, 1, 1]))
    test = Features(angles(79.0, 83.0, 10.0, 200.0), torch.tensor([0, 0, 0, 0]))
    accuracies = few_shot_accuracies(train, test, shots=2, episodes=3)
    assert accuracies.tolist() == [50.0, 50.0, 50.0]


def test_each_episode_draws_other_features_without_replacement_from_the_seed():
    generator = torch.Generator().manual_seed(0)
    train = Features(torch.randn(60, 5, generator=generator), torch.arange(60) % 3)
    test = Features(torch.randn(50, 5, generator=generator), torch.arange(50) % 3)
    one = few_shot_accuracies(train, test, shots=1, episodes=20, seed=1)
    assert torch.equal(one, few_shot_accuracies(train, test, shots=1, episodes=20, seed=1))
    assert not torch.equal(one, few_shot_accuracies(train, test, shots=1, episodes=20, seed=2))
    assert len(set(one.tolist())) > 5
    # All of a class: every episode draws the same, so none is drawn twice.
    every = few_shot_accuracies(train, test, shots=20, episodes=5)
    assert len(set(every.tolist())) == 1


def test_classes_keep_their_numbers_if_one_has_no_training_image():
    train = Features(angles(0.0, 90.0), torch.tensor([1, 3]))
    test = Features(angles(10.0, 80.0, 80.0), torch.tensor([1, 3, 2]))
    assert few_shot_accuracies(train, test, shots=1, episodes=1).item() == pytest.approx(200 / 3)


def test_the_interval_is_of_the_mean_over_episodes():
    mean, half = summarise_episodes([40.0, 50.0, 60.0])
    assert mean == 50
    assert half == pytest.approx(1.96 * 10 / math.sqrt(3))


def test_the_protocol_has_a_mean_and_an_interval_for_each_number_of_shots(setup):
    generator = torch.Generator().manual_seed(0)
    data = Features(torch.randn(40, 5, generator=generator), torch.arange(40) % 2)
    outcome = FewShot((1, 5), 10).measure(Part("backbone", None, data, data), setup)
    measures = outcome.last.measures
    assert list(measures) == ["1-shot", "1-shot interval", "5-shot", "5-shot interval"]
    for shots in (1, 5):
        accuracies = few_shot_accuracies(data, data, shots, 10, seed=setup.seed)
        found = measures[f"{shots}-shot"], measures[f"{shots}-shot interval"]
        assert found == summarise_episodes(accuracies)
    assert math.isnan(outcome.last.top1)
    assert "over 10 episodes" in outcome.last.note


def test_too_few_images_and_episodes_are_value_errors():
    data = Features(torch.randn(5, 2), torch.tensor([0, 0, 0, 1, 1]))
    with pytest.raises(ValueError, match=r"3 shots need 3 .* a class has 2: give fewer --few_sh"):
        few_shot_accuracies(data, data, shots=3, episodes=2)
    with pytest.raises(ValueError, match="must be positive, got 0 and 2"):
        few_shot_accuracies(data, data, shots=0, episodes=2)
    with pytest.raises(ValueError, match=r"2 or more .* got \[1\] and 1"):
        FewShot((1,), 1)
