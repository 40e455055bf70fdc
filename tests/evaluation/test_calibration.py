import math

import pytest
import torch

from mixco_lightly import ProbeResult
from mixco_lightly.evaluation.calibration import calibration_error
from mixco_lightly.evaluation.figures import summarise
from mixco_lightly.evaluation.tables import list_results


def logits_of(confidences):
    """Logits of two classes; the first has the given probabilities, all above one half."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=1).float()


def test_ece_is_the_gap_of_accuracy_and_confidence_in_each_bin_weighted_by_its_predictions():
    # Bins of 1/15: 0.61 and 0.65 lie in (9/15, 10/15], 0.95 and 0.99 in (14/15, 1].
    logits = logits_of([0.61, 0.65, 0.95, 0.99])
    targets = torch.tensor([0, 1, 0, 0])
    # |1/2 - 0.63| and |1 - 0.97|, each of half of the predictions.
    expected = 100 * (0.5 * 0.13 + 0.5 * 0.03)
    assert calibration_error(logits, targets) == pytest.approx(expected, abs=1e-4)


def test_fifteen_bins_separate_confidences_that_ten_would_not():
    # 0.65 and 0.68 share a bin of tenths, but not of fifteenths: 10/15 = 0.667.
    error = calibration_error(logits_of([0.65, 0.68]), torch.tensor([0, 1]))
    assert error == pytest.approx(100 * (0.5 * 0.35 + 0.5 * 0.68), abs=1e-4)


def test_logits_in_the_unit_interval_are_not_taken_for_probabilities():
    error = calibration_error(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert error == pytest.approx(100 * (1 - math.e / (math.e + 1)), abs=1e-4)


def test_scores_that_are_not_finite_have_no_error():
    assert math.isnan(calibration_error(torch.tensor([[math.nan, 0.0]]), torch.tensor([0])))


def test_measures_stand_in_summaries_and_tables_and_a_nan_accuracy_does_not():
    results = {
        "torch": ProbeResult(50.0, 90.0, measures={"ECE": 3.14159}),
        "knn": ProbeResult(math.nan, math.nan, measures={"5-shot": 7.0}),
    }
    assert summarise({"backbone": results, "subnetwork": results}) == {
        "linear_top1": 50.0,
        "linear_ece": 3.14159,
        "knn_5_shot": 7.0,
        "subnetwork_linear_top1": 50.0,
        "subnetwork_linear_ece": 3.14159,
        "subnetwork_knn_5_shot": 7.0,
        "linear_top5": 90.0,
    }
    listing = list_results("backbone", {"plain": results})
    assert listing.columns == ["backbone", "protocol", "top-1 %", "top-5 %", "further %"]
    assert listing.rows == [
        ["plain", "linear, torch", "50.00", "90.00", "ECE 3.14"],
        ["plain", "kNN", "", "", "5-shot 7.00"],
    ]
    plain = list_results("backbone", {"plain": {"knn": ProbeResult(1.0, 2.0)}})
    assert plain.columns == ["backbone", "protocol", "top-1 %", "top-5 %"]
    assert plain.rows == [["plain", "kNN", "1.00", "2.00"]]
