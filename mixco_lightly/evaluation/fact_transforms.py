"""The transforms of an evaluation, from facts."""
# until transforms take facts: then this module goes, and its two functions are those of
# mixco_lightly.data.transforms.

from __future__ import annotations

from typing import Any

from mixco_lightly.data import transforms
from mixco_lightly.data.images import ImageFacts


def create_test_transform(facts: ImageFacts, image_size: int) -> Any:
    """Creates the transform without augmentation."""
    return transforms.create_test_transform("cifar10", image_size, facts.mean, facts.std)


def create_probe_transform(facts: ImageFacts, image_size: int) -> Any:
    """Creates the transform with random crops and flips."""
    name = "cifar10" if facts.can_flip else "digits"
    return transforms.create_probe_transform(name, image_size, facts.mean, facts.std)
