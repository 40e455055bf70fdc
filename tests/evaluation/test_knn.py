import math

import pytest
import torch

from mixco_lightly import Features, knn_probe


def make_features(n, num_classes=7, dim=6, seed=0):
    means = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_classes, (n,), generator=generator)
    # Lengths differ, so that only a cosine ignores them.
    lengths = 0.1 + 5 * torch.rand(n, 1, generator=generator)
    noise = torch.randn(n, dim, generator=generator)
    return Features(lengths * (means[targets] + noise), targets)


def naive_knn(train, test, k, temperature):
    """Each of the k most similar training features votes exp(cosine / temperature)."""
    train_x, test_x = (part.features.double().tolist() for part in (train, test))
    num_classes = int(max(train.targets.max(), test.targets.max())) + 1
    hits1 = hits5 = 0
    for x, target in zip(test_x, test.targets.tolist(), strict=True):
        similarities = []
        for z, label in zip(train_x, train.targets.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(x, z, strict=True))
            similarities.append((dot / (math.hypot(*x) * math.hypot(*z)), label))
        votes = [0.0] * num_classes
        for similarity, label in sorted(similarities, reverse=True)[:k]:
            votes[label] += math.exp(similarity / temperature)
        ranked = sorted(range(num_classes), key=lambda c: -votes[c])
        hits1 += target == ranked[0]
        # A class without a vote has no rank of its own.
        hits5 += target in ranked[:5]
    return 100 * hits1 / len(test_x), 100 * hits5 / len(test_x)


@pytest.mark.parametrize(
    ("k", "temperature"), [(1, 0.1), (5, 0.1), (20, 0.1), (20, 1.0), (60, 0.1), (60, 0.02)]
)
def test_vote_equals_a_loop_over_neighbours(k, temperature):
    train, test = make_features(60), make_features(80, seed=1)
    result = knn_probe(train, test, k=k, temperature=temperature)
    top1, top5 = naive_knn(train, test, k, temperature)
    assert 20 < top1 < 90
    assert result.top1 == pytest.approx(top1)
    if k == 60:  # every class has votes, so the first five are no matter of ties
        assert result.top5 == pytest.approx(top5)
    assert result.note == ""


def test_lowest_temperature_leaves_the_nearest_neighbour_and_a_lower_one_is_refused():
    # exp(1 / 0.01) is more than a float32 holds.
    train, test = make_features(60), make_features(80, seed=1)
    nearest = knn_probe(train, test, k=1).top1
    lowest = knn_probe(train, test, k=20, temperature=0.0125).top1
    assert lowest == pytest.approx(nearest, abs=5)
    with pytest.raises(ValueError, match=r"0\.01: the vote"):
        knn_probe(train, test, temperature=0.01)


def test_parameters_change_the_vote():
    train, test = make_features(200), make_features(400, seed=1)
    results = [
        knn_probe(train, test, k=k, temperature=temperature).top1
        for k, temperature in [(1, 0.1), (200, 0.02), (200, 10.0)]
    ]
    assert len(set(results)) == 3


def test_defaults_are_200_neighbours_and_temperature_a_tenth():
    train, test = make_features(500), make_features(300, seed=1)
    result = knn_probe(train, test)
    assert result == knn_probe(train, test, k=200, temperature=0.1)
    assert result.top1 not in {
        knn_probe(train, test, k=1).top1,
        knn_probe(train, test, k=500, temperature=1.0).top1,
    }


def test_length_of_features_does_not_matter():
    train, test = make_features(60), make_features(80, seed=1)
    stretched = Features(test.features * torch.linspace(0.01, 100, 80).unsqueeze(1), test.targets)
    assert knn_probe(train, stretched, k=5) == knn_probe(train, test, k=5)


def test_k_above_the_number_of_training_images_is_adapted_and_noted():
    train, test = make_features(30), make_features(40, seed=1)
    result = knn_probe(train, test)
    exact = knn_probe(train, test, k=30)
    assert result[:2] == exact[:2]
    assert result.note == "k is 30, the number of training images"
    assert exact.note == ""


def test_every_adaptation_is_noted():
    train, test = (make_features(30, num_classes=3, seed=seed) for seed in (0, 1))
    result = knn_probe(train, test)
    assert result.note == "k is 30, the number of training images; top5 is top3: 3 classes"
    assert result.top5 == 100


def test_more_test_images_than_one_chunk_are_all_classified():
    train, test = make_features(50), make_features(1100, seed=1)
    parts = [
        knn_probe(train, Features(test.features[rows], test.targets[rows]), k=5).top1
        for rows in (slice(0, 550), slice(550, 1100))
    ]
    assert knn_probe(train, test, k=5).top1 == pytest.approx(sum(parts) / 2)


def test_class_without_training_images_is_never_found():
    train = Features(torch.eye(4), torch.tensor([0, 1, 2, 3]))
    test = Features(torch.eye(4), torch.tensor([0, 1, 2, 6]))
    assert knn_probe(train, test, k=1).top1 == 75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be positive, got 0"),
        ({"k": -1}, "k must be positive, got -1"),
        ({"temperature": 0.0}, r"at least 0\.0125, got 0\.0"),
        ({"temperature": float("nan")}, r"at least 0\.0125, got nan"),
    ],
)
def test_bad_options_are_refused_and_named(options, message):
    with pytest.raises(ValueError, match=message):
        knn_probe(make_features(10), make_features(10), **options)


GOOD = make_features(10)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (GOOD, make_features(10, dim=5), "6 dimensions.*features 5"),
        (Features(GOOD.features[:0], GOOD.targets[:0]), GOOD, r"training features .*\(0, 6\)"),
        (GOOD, Features(GOOD.features / 0, GOOD.targets), "test features .* not finite"),
        (Features(GOOD.features, GOOD.targets * 0), GOOD, "all of one class"),
    ],
)
def test_features_that_do_not_fit_are_refused(train, test, message):
    with pytest.raises(ValueError, match=message):
        knn_probe(train, test)
