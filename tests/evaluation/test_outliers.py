import math

import pytest
import torch

from mixco_lightly import Features
from mixco_lightly.evaluation.further_protocols import OutlierDetection
from mixco_lightly.evaluation.outliers import detect_outliers, nearest_distances
from mixco_lightly.evaluation.parts import Part


def test_the_distance_is_to_the_kth_nearest_normalised_training_feature():
    train = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    features = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    diagonal = math.sqrt(2 - math.sqrt(2))  # between directions 45 degrees apart
    for k, expected in [(1, [0, diagonal]), (2, [math.sqrt(2), diagonal])]:
        torch.testing.assert_close(nearest_distances(train, features, k), torch.tensor(expected))
    assert nearest_distances(train, features, 3)[0] == pytest.approx(2)
    for k in (0, 4):
        with pytest.raises(ValueError, match=rf"1\.\.3, .* got {k}"):
            nearest_distances(train, features, k)


def test_auroc_counts_the_pairs_in_which_the_outlier_is_farther():
    test = torch.tensor([0.1, 0.3, 0.5])
    outliers = torch.tensor([0.4, 0.6, 0.3, 0.05])
    # 0.4 is ahead of two, 0.6 of three, 0.3 of one and level with one, 0.05 of none.
    assert detect_outliers(test, outliers).auroc == pytest.approx(100 * 6.5 / 12)


def test_fpr95_is_the_share_of_outliers_within_the_distance_that_accepts_95_percent():
    test = torch.arange(1, 41).flip(0) / 40  # 38 of 40 are 95%: the threshold is 0.95
    outliers = torch.tensor([0.2, 0.95, 0.96, 2.0, 3.0])
    assert detect_outliers(test, outliers).fpr95 == pytest.approx(40)
    # 19.95 of 21 are 95%, so 20 must be accepted: 0.9525 of them.
    test = torch.arange(1.0, 22)
    assert detect_outliers(test, torch.tensor([19.5, 20.0, 20.5, 21.0])).fpr95 == 50


def test_the_protocol_compares_test_images_with_the_second_datasets(setup):
    train, test, outliers = (
        Features(torch.randn(n, 3, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 2)
        for n in (30, 20, 10)
    )
    part = Part("backbone", None, train, test, {"outliers": outliers})
    for k, note in [(4, ""), (100, "k is 30, the number of training images")]:
        result = OutlierDetection("other", k).measure(part, setup).last
        distances = [
            nearest_distances(train.features, x.features, min(k, 30)) for x in (test, outliers)
        ]
        assert tuple(result.measures.values()) == detect_outliers(*distances)
        assert list(result.measures) == ["AUROC", "FPR95"]
        assert result.note == note
        assert math.isnan(result.top1)
