"""Backbones in other runtimes: ONNX in onnxruntime, and programs of torch.export."""

import json
import shutil

import onnxruntime
import pytest
import torch
from torch import nn

import mixco_lightly.backbones.formats as formats
from mixco_lightly import create_backbone
from mixco_lightly.backbones import export_onnx, export_program

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
# float32 rounding of networks of a few layers, as a part of the largest feature.
ROUNDING = 1e-5
WRITERS = {"onnx": export_onnx, "pt2": export_program}


def trained_backbone(name, image_size=32, **options):
    """A backbone in training mode whose BatchNorm statistics are not those of its start."""
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size, **options)
    for _ in range(2):
        backbone(1 + 2 * torch.randn(8, 3, image_size, image_size))
    backbone.mean, backbone.std = MEAN, STD
    return backbone


def run_onnx(path, images):
    """Features of a file, and its metadata, as a user without this package has them."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(features), session.get_modelmeta().custom_metadata_map


def run_program(path, images):
    extra = {"backbone.json": ""}
    program = torch.export.load(path, extra_files=extra)
    with torch.no_grad():
        return program.module()(images), json.loads(extra["backbone.json"])


RUNS = {"onnx": run_onnx, "pt2": run_program}
SLOW = [("test_vit", 32), ("test_convnext", 32), ("test_efficientnet", 64), ("test_resnet", 96)]


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize(
    ("name", "size"),
    [("test_resnet", 32), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_a_runtime_computes_the_features_of_the_backbone_up_to_rounding(name, size, kind, tmp_path):
    backbone = trained_backbone(name, size)
    path = WRITERS[kind](backbone, tmp_path / "new" / f"backbone.{kind}")
    assert [file.name for file in path.parent.iterdir()] == [f"backbone.{kind}"]
    assert all(module.training for module in backbone.modules())
    assert backbone.stem == ("small" if size == 32 or name == "test_efficientnet" else "timm")
    assert formats.check_file(backbone, path) < ROUNDING
    assert path.exists()
    backbone.eval()
    for count in (1, 3, 7):
        images = torch.randn(count, 3, size, size)
        features, facts = RUNS[kind](path, images)
        with torch.no_grad():
            expected = backbone(images)
        assert features.shape == expected.shape == (count, backbone.feature_dim)
        assert (features - expected).abs().max() < ROUNDING * expected.abs().max()
    assert facts == formats.describe_input(backbone)
    assert json.loads(facts["mean"]) == list(MEAN)
    assert json.loads(facts["std"]) == list(STD)
    assert [json.loads(facts[name]) for name in ("crop", "resize", "feature_dim")] == [
        size,
        backbone.resize,
        backbone.feature_dim,
    ]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return export_program(trained_backbone("test_resnet"), tmp_path_factory.mktemp("it") / "x.pt2")


@pytest.mark.parametrize("wrong", ["weight", "nan"])
def test_a_file_with_other_features_is_removed_and_the_error_has_the_difference(
    wrong, program, tmp_path
):
    backbone = trained_backbone("test_resnet")
    path = shutil.copy(program, tmp_path)
    with torch.no_grad():
        weight = next(backbone.model.parameters())
        weight[0] = weight[0] * 1.01 if wrong == "weight" else float("nan")
    with pytest.raises(ValueError, match=r"was removed: .* test_resnet by (nan|\d\.\de-0[123])"):
        formats.check_file(backbone, path)
    assert not list(tmp_path.iterdir())


def test_a_network_that_torch_cannot_trace_is_an_error_that_names_it(tmp_path):
    class Chooses(nn.Module):
        def forward(self, images):
            return images.flatten(1) if images.sum() > 0 else images.flatten(1) * 2

    backbone = trained_backbone("test_resnet")
    backbone.model = Chooses()
    with pytest.raises(ValueError, match="torch cannot trace test_resnet: "):
        export_program(backbone, tmp_path / "backbone.pt2")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ValueError, match=r"not installed \(onnxscript\): pip install .*\[export\]"):
        export_onnx(trained_backbone("test_resnet"), tmp_path / "backbone.onnx")
    assert not list(tmp_path.iterdir())
