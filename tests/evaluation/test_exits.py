"""The probe of several exits against separate probes, and the ensemble against its definition."""

import pytest
import torch

from mixco_lightly import Features, linear_probe
from mixco_lightly.evaluation.exits import exit_probe, select_exit
from mixco_lightly.evaluation.linear import linear_scores
from mixco_lightly.evaluation.probe_result import rank_scores

OPTIONS = {"epochs": 20, "learning_rate": 0.1}


def features_of(n, seed):
    """Three exits: one tells class 0 from the others, one class 1, and the last is noise."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % 3
    x = torch.randn(n, 3, 4, generator=generator)
    x[:, 0, 0] += 6 * (targets == 0)
    x[:, 1, 1] += 6 * (targets == 1)
    return Features(x, targets)


TRAIN, TEST = features_of(240, seed=0), features_of(150, seed=1)


def exit_of(index):
    return [Features(part.features[:, index], part.targets) for part in (TRAIN, TEST)]


def test_each_exit_has_the_result_of_a_probe_of_its_own():
    results = exit_probe(TRAIN, TEST, **OPTIONS)
    assert len(results) == 4
    for index in range(3):
        alone = linear_probe(*exit_of(index), **OPTIONS)
        assert results[index] == alone


def test_the_ensemble_is_the_mean_of_the_logits_and_can_beat_each_exit():
    *exits, ensemble = exit_probe(TRAIN, TEST, **OPTIONS)
    logits = [linear_scores(*exit_of(index), **OPTIONS)[0] for index in range(3)]
    predicted = (sum(logits) / 3).argmax(dim=1)
    top1 = 100 * (predicted == TEST.targets).double().mean().item()
    assert ensemble.top1 == pytest.approx(top1)
    assert ensemble.top1 > max(result.top1 for result in exits) + 10


def test_the_ensemble_of_scikit_learns_classifiers_is_the_mean_of_their_probabilities():
    ensemble = exit_probe(TRAIN, TEST, solver="sklearn")[-1]
    scores = [linear_scores(*exit_of(index), "sklearn")[0] for index in range(3)]
    assert ensemble == rank_scores(sum(scores) / 3, TEST.targets)


def test_learning_rates_are_chosen_for_each_exit():
    results = exit_probe(TRAIN, TEST, epochs=5, learning_rate=(0.01, 0.1))
    assert all("learning_rate=0.01" in r.note or "learning_rate=0.1" in r.note for r in results[:3])
    assert "learning_rate" not in results[3].note


def test_scores_are_logits_for_torch_and_probabilities_for_sklearn():
    first = exit_of(0)
    logits, _ = linear_scores(*first, **OPTIONS)
    probabilities, _ = linear_scores(*first, "sklearn")
    assert logits.shape == probabilities.shape == (150, 3)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(150))
    assert (logits < 0).any()
    assert rank_scores(probabilities, TEST.targets) == linear_probe(*first, "sklearn")


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shape \(N, E, D\), got \(240, 4\)"):
        exit_probe(select_exit(TRAIN, 0), TEST)
    fewer = Features(TEST.features[:, :2], TEST.targets)
    with pytest.raises(ValueError, match="have 3 exits, the test features 2"):
        exit_probe(TRAIN, fewer)
