"""A transform of the user's own for the views of an image."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mixco_lightly.data.images import ImageFacts, Transform
from mixco_lightly.data.own_code import call_own, load_function


def create_own_transform(
    name: str, facts: ImageFacts, image_size: int, num_views: int = 2
) -> Transform:
    """Creates a transform by a function of the user's, and tries it on an image.

    The function is given those of these arguments that it names: ``image_size``, ``mean``, ``std``
    and ``num_views``; and ``input_size`` and ``normalize``, as Lightly's transforms call the size
    and the statistics. So most of Lightly's transforms can be named themselves.

    Args:
        name: FILE.py:FUNCTION or MODULE:FUNCTION.
        facts: Facts about the images.
        image_size: Height and width of the views in pixels.
        num_views: Number of views that the method needs.

    Returns:
        Callable: What the function returns, from a PIL image in RGB to a list of ``num_views``
        tensors (3, image_size, image_size).

    Raises:
        ValueError: If there is no such function, it fails, or the transform makes something else.

    Examples:
        >>> from PIL import Image
        >>> from mixco_lightly.data import create_own_transform, get_dataset
        >>> facts = get_dataset("cifar10").facts
        >>> transform = create_own_transform("lightly.transforms:SimCLRTransform", facts, 32)
        >>> [tuple(view.shape) for view in transform(Image.new("RGB", (40, 30)))]
        [(3, 32, 32), (3, 32, 32)]
    """
    mean, std = list(facts.mean), list(facts.std)
    offered = {
        "image_size": image_size,
        "input_size": image_size,
        "mean": mean,
        "std": std,
        "normalize": {"mean": mean, "std": std},
        "num_views": num_views,
    }
    create = load_function(name)
    wanted = call_own(name, inspect.signature, create).parameters
    transform = call_own(name, create, **{x: offered[x] for x in wanted if x in offered})
    expected = f"a list of {num_views} tensors of shape (3, {image_size}, {image_size})"
    if not callable(transform):
        raise ValueError(
            f"{name} returned {_describe(transform)}: expected a callable that makes {expected} of "
            "a PIL image."
        )
    # Model heads are initialised afterwards, by the same random numbers as without the trial.
    with torch.random.fork_rng(devices=[]):
        views = call_own(name, transform, Image.new("RGB", (image_size, image_size)))
    if isinstance(views, tuple):
        views = list(views)
    if _describe(views) != _describe([torch.empty(3, image_size, image_size)] * num_views):
        raise ValueError(f"The transform of {name} made {_describe(views)}: expected {expected}.")
    return transform


def _describe(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {', '.join(map(_describe, value)) or 'nothing'}"
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return "None" if value is None else type(value).__name__
