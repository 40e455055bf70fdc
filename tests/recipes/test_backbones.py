"""The list of backbones, as its users call it."""

import csv
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mixco_lightly import create_backbone

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def list_backbones(monkeypatch, capsys, tmp_path):
    """Runs the recipe in this process; gives the rows of its CSV, its exit code and its output."""

    def call(*options):
        path = tmp_path / "backbones.csv"
        monkeypatch.setattr(sys, "argv", ["backbones.py", *options, "--csv", str(path)])
        monkeypatch.syspath_prepend(str(RECIPES))
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            runpy.run_path(str(RECIPES / "backbones.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        rows = list(csv.DictReader(path.open())) if path.exists() else []
        return rows, code, capsys.readouterr()

    return call


def multiply_adds(model, images):
    """Products of the convolutions and linear layers, from the shapes of their outputs."""
    total = 0

    def count(layer, _, output):
        nonlocal total
        total += output.numel() * layer.weight[0].numel()  # a row of the weights for each output

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(images)
    return total


@pytest.mark.parametrize(
    ("name", "size", "stride"),
    [("test_resnet", 32, 8), ("test_resnet", 96, 32), ("gmlp_ti16_224", 32, 4)],
)
def test_row_describes_the_backbone_that_is_built(name, size, stride, list_backbones):
    (row,), code, output = list_backbones("--names", name, "--image_size", str(size))
    assert (code, output.err) == (0, "")
    backbone = create_backbone(name, size)
    assert row == {
        "name": name,
        "parameters": str(sum(parameter.numel() for parameter in backbone.parameters())),
        "feature_dim": str(backbone.feature_dim),
        "output_stride": str(stride),
        "multiply_adds": str(multiply_adds(backbone, torch.zeros(1, 3, size, size))),
        "stem": backbone.stem,
    }
    assert f"at {size} pixels" in output.out
    assert "1 backbones, 0 names" in output.out


def test_rows_are_sorted_by_the_named_column(list_backbones):
    options = ["--names", "test_vit", "test_resnet", "test_convnext"]
    by_name, *_ = list_backbones(*options)
    assert [row["name"] for row in by_name] == ["test_convnext", "test_resnet", "test_vit"]
    by_cost, *_ = list_backbones(*options, "--sort", "multiply_adds")
    costs = [int(row["multiply_adds"]) for row in by_cost]
    assert costs == sorted(costs)
    assert {row["name"] for row in by_cost} == {row["name"] for row in by_name}


def test_names_that_do_not_take_the_images_are_named_with_what_is_possible(list_backbones):
    rows, code, output = list_backbones("--names", "test_vit", "--image_size", "33", "--stem=timm")
    assert (rows, code) == ([], 0)
    assert "test_vit cannot take images of 33 pixels" in output.out
    assert "the next size that works is 64" in output.out
    assert "0 backbones, 1 names that do not take these images" in output.out


def test_a_wildcard_without_a_name_is_one_line(list_backbones):
    rows, code, _ = list_backbones("--names", "resnet81*")
    assert rows == []
    assert code.startswith("error: timm ")
    assert "no name like resnet81*" in code


def test_the_page_of_backbones_has_the_summary_of_the_sweeps_rows(monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root / "tests" / "benchmarks"))
    import backbones

    rows = backbones.read(root / "docs" / "backbones.csv")
    assert backbones.summary(rows) in (root / "docs" / "backbones.md").read_text()
    assert all(value >= limit for _, value, limit in backbones.limits(rows))
