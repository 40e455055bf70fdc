"""What this package takes from Lightly. A failure here says what a new release has changed."""

import ast
import importlib
import importlib.metadata

import pytest
import torch
from lightly.data.multi_view_collate import MultiViewCollate
from lightly.transforms import MoCoV2Transform, SimCLRTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from PIL import Image
from torch.utils.data import default_collate

from mixco_lightly import MixCoCollate, Mixture
from mixco_lightly.data.collate import find_mixtures, find_views
from tests.test_rooms import MODULES

TRANSFORMS = pytest.mark.parametrize("transform", [MoCoV2Transform, SimCLRTransform])


def test_lightly_is_older_than_2():
    version = importlib.metadata.version("lightly")
    assert int(version.partition(".")[0]) < 2, (
        f"Lightly {version} is installed; this package is written for 1.6 to 2.0. Its batches, "
        "transforms and NT-Xent may differ: see CONTRIBUTING.md#lightly-20, go through the other "
        "failures of this file, and then raise the limit in pyproject.toml."
    )


def test_every_name_that_is_imported_from_lightly_is_there():
    missing, count = [], 0
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightly."):
                for alias in node.names:
                    count += 1
                    try:
                        if not hasattr(importlib.import_module(node.module), alias.name):
                            importlib.import_module(f"{node.module}.{alias.name}")
                    except ImportError:
                        missing.append(f"{path.stem}: {node.module}.{alias.name}")
    assert count > 20
    assert not missing


@TRANSFORMS
def test_a_transform_is_a_multi_view_transform_and_returns_two_tensors(transform):
    made = transform(input_size=16)
    assert isinstance(made, MultiViewTransform)
    assert len(made.transforms) == 2
    views = made(Image.new("RGB", (20, 20)))
    assert type(views) is list
    assert all(isinstance(view, torch.Tensor) for view in views)
    assert [tuple(view.shape) for view in views] == [(3, 16, 16)] * 2


@TRANSFORMS
@pytest.mark.parametrize("collate", [default_collate, MultiViewCollate()])
def test_a_batch_starts_with_a_list_of_tensors_and_takes_mixtures_at_its_end(transform, collate):
    made = transform(input_size=16)
    images = [(made(Image.new("RGB", (20, 20))), 0, "a.png") for _ in range(4)]
    batch = MixCoCollate(collate_fn=collate)(images)
    assert [view.shape for view in find_views(batch, count=2)] == [(4, 3, 16, 16)] * 2
    (mixture,) = find_mixtures(batch, count=1)
    assert isinstance(mixture, Mixture)
    assert mixture.images.shape == (2, 3, 16, 16)
