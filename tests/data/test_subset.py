from itertools import pairwise

import pytest
import torch

from mixco_lightly.data.subset import choose_part

# 100, 30 and 4 images, in no order.
TARGETS = torch.tensor([0] * 100 + [1] * 30 + [2] * 4)[
    torch.randperm(134, generator=torch.Generator().manual_seed(1))
]


@pytest.mark.parametrize(
    ("fraction", "counts"), [(0.1, [10, 3, 1]), (0.5, [50, 15, 2]), (0.03, [3, 1, 1])]
)
def test_each_class_gives_its_part_and_at_least_one(fraction, counts):
    chosen = choose_part(TARGETS, fraction)
    assert TARGETS[chosen].bincount().tolist() == counts
    assert chosen.diff().gt(0).all()


def test_all_labels_are_all_images_in_their_order():
    assert torch.equal(choose_part(TARGETS, 1.0), torch.arange(134))


def test_a_class_without_images_is_left_out():
    assert choose_part(torch.tensor([0, 0, 3, 3]), 0.5).shape == (2,)


@pytest.mark.parametrize("seed", [0, 5])
def test_a_larger_part_contains_a_smaller_one(seed):
    parts = [set(choose_part(TARGETS, f, seed).tolist()) for f in (0.03, 0.1, 0.5, 1)]
    assert all(smaller < larger for smaller, larger in pairwise(parts))


def test_the_seed_decides_and_reaches_every_image():
    before = torch.random.get_rng_state()
    parts = [choose_part(TARGETS, 0.1, seed) for seed in range(150)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(parts[3], choose_part(TARGETS, 0.1, 3))
    assert not torch.equal(parts[0], parts[1])
    assert torch.cat(parts).unique().numel() == 134


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_a_fraction_outside_of_0_to_1_is_refused(fraction):
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        choose_part(TARGETS, fraction)


def test_a_fraction_of_fewer_images_than_classes_is_refused():
    with pytest.raises(ValueError, match=r"0\.01 of 134 images .* 3 classes"):
        choose_part(TARGETS, 0.01)
