"""Backbones in other runtimes: ONNX in onnxruntime, and programs of torch.export."""

import json
import re
import shutil
from collections import OrderedDict
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

import mixco_lightly.backbones.formats as formats
from mixco_lightly import create_backbone, export_backbone
from mixco_lightly.backbones import export_onnx, export_program

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"
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
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type) == ("images", "tensor(float)")
    (features,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(features), session.get_modelmeta().custom_metadata_map


def run_program(path, images):
    extra = {"backbone.json": ""}
    program = torch.export.load(path, extra_files=extra)
    with torch.no_grad():
        return program.module()(images), json.loads(extra["backbone.json"])


RUNS = {"onnx": run_onnx, "pt2": run_program}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the files of a small network, which is in float64 while it is written."""
    folder = tmp_path_factory.mktemp("written") / "new"
    backbone = trained_backbone("test_resnet").double()
    for kind, write in WRITERS.items():
        assert write(backbone, folder / f"backbone.{kind}") == folder / f"backbone.{kind}"
    assert {x.name for x in folder.iterdir()} == {"backbone.onnx", "backbone.pt2"}
    assert all(module.training for module in backbone.modules())
    assert {x.dtype for x in backbone.parameters()} == {torch.float64}
    return folder


def check(path, backbone):
    """The file's features are the backbone's in eval mode, for batches of several sizes."""
    kind = path.suffix[1:]
    assert formats.check_file(backbone, path) < ROUNDING
    assert path.exists()
    backbone.eval()
    side = backbone.image_size
    for count in (1, 3, 7):
        images = torch.randn(count, 3, side, side)
        features, facts = RUNS[kind](path, images)
        with torch.no_grad():
            expected = backbone(images)
        assert features.shape == expected.shape == (count, backbone.feature_dim)
        assert features.dtype == torch.float32
        assert (features - expected).abs().max() < ROUNDING * expected.abs().max()
    assert facts == formats.describe_input(backbone)
    numbers = {"crop": side, "resize": backbone.resize, "feature_dim": backbone.feature_dim}
    for name, value in {"mean": list(MEAN), "std": list(STD), **numbers}.items():
        assert json.loads(facts[name]) == value


@pytest.mark.parametrize("kind", WRITERS)
def test_a_runtime_computes_the_features_of_the_backbone_up_to_rounding(kind, written):
    backbone = trained_backbone("test_resnet")
    assert backbone.stem == "small"
    check(written / f"backbone.{kind}", backbone)


def test_the_code_of_the_page_computes_the_features(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(written, "runs/moco")
    backbone = trained_backbone("test_resnet").eval()
    images = torch.randn(2, 3, 32, 32)
    _, for_onnx, for_program = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    for code, given in ((for_onnx, images.numpy()), (for_program, images)):
        names = {"images": given}
        exec(compile(code, "page", "exec"), names)  # noqa: S102
        features = torch.as_tensor(names["features"])
        with torch.no_grad():
            torch.testing.assert_close(features, backbone(images), rtol=0, atol=ROUNDING)
    assert json.loads(names["extra"]["backbone.json"])["mean"] == json.dumps(list(MEAN))


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("name", "size"),
    [("test_vit", 32), ("gmlp_ti16_224", 32), ("test_convnext", 32), ("test_efficientnet", 64)],
)
def test_so_it_does_for_attention_set_patches_and_depthwise_networks(name, size, kind, tmp_path):
    backbone = trained_backbone(name, size)
    check(WRITERS[kind](backbone, tmp_path / f"backbone.{kind}"), backbone)


@pytest.mark.parametrize("wrong", ["weight", "nan"])
def test_a_file_with_other_features_is_removed_and_the_error_has_the_difference(
    wrong, written, tmp_path
):
    backbone = trained_backbone("test_resnet")
    path = shutil.copy(written / "backbone.onnx", tmp_path)
    with torch.no_grad():
        weight = next(backbone.model.parameters())
        weight[0] = weight[0] * 1.01 if wrong == "weight" else float("nan")
    with pytest.raises(ValueError, match=r"was removed: .* test_resnet by (nan|\d\.\de-0[123])"):
        formats.check_file(backbone, path)
    assert not list(tmp_path.iterdir())


def test_a_network_that_torch_cannot_trace_is_an_error_that_names_it(tmp_path, monkeypatch):
    # A hook for buffers, which torch 2.10 leaves behind here, makes a later torch.compile fail.
    monkeypatch.setattr(nn.modules.module, "_global_buffer_registration_hooks", OrderedDict())

    class Chooses(nn.Module):
        def forward(self, images):
            return images.flatten(1) if images.sum() > 0 else images.flatten(1) * 2

    backbone = create_backbone("test_resnet", 32)
    backbone.model = Chooses()
    with pytest.raises(ValueError, match="torch cannot trace test_resnet: "):
        export_program(backbone, tmp_path / "backbone.pt2")
    assert not list(tmp_path.iterdir())


def test_a_network_that_torch_cannot_convert_is_one_line_with_the_first_cause(
    tmp_path, monkeypatch
):
    def convert(*arguments, **options):
        try:
            raise RuntimeError("Cannot view a tensor!\n\nWhile executing %view_37")
        except RuntimeError as error:
            raise ValueError("Failed to decompose.\x1b[96m\n- Create an issue.") from error

    monkeypatch.setattr(formats, "_trace", lambda backbone: None)
    monkeypatch.setattr(torch.onnx, "export", convert)
    expected = r"^torch cannot convert test_resnet to ONNX: Cannot view a tensor!\. export_program"
    with pytest.raises(ValueError, match=expected) as caught:
        export_onnx(create_backbone("test_resnet", 32), tmp_path / "backbone.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ValueError, match=r"not installed \(onnxscript\): pip install .*\[onnx\]'"):
        export_onnx(create_backbone("test_resnet", 32), tmp_path / "backbone.onnx")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def command(written, tmp_path, monkeypatch, run_here):
    """Runs the command in a folder with two exports; its writers copy, which takes no time."""

    def copies(kind):
        def write(backbone, path):
            path.parent.mkdir(exist_ok=True)
            return shutil.copy(written / f"backbone.{kind}", path)

        return write

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(formats, "export_onnx", copies("onnx"))
    monkeypatch.setattr(formats, "export_program", copies("pt2"))
    for folder in ("a", "b"):
        export_backbone(trained_backbone("test_resnet"), folder, mean=MEAN, std=STD)
    return lambda *options: run_here("export", *options)


def test_the_command_writes_checked_files_beside_the_weights_or_in_a_folder(command, tmp_path):
    code, printed, _ = command("--backbone_dir", "a", "--format", "onnx", "torch")
    assert code == 0
    assert [line.split(": equal to test_resnet up to ")[0] for line in printed.splitlines()] == [
        "a/backbone.onnx",
        "a/backbone.pt2",
    ]
    assert command("--backbone_dir", "a", "b", "--output_dir", "out")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.onnx", "b.onnx"}


def test_the_command_replaces_files_only_if_told(command, tmp_path):
    (tmp_path / "b" / "backbone.onnx").write_text("mine")
    code, _, error = command("--backbone_dir", "a", "b")
    assert (code, error) == (1, "error: There is already b/backbone.onnx: add --overwrite.\n")
    assert not (tmp_path / "a" / "backbone.onnx").exists()
    assert (tmp_path / "b" / "backbone.onnx").read_text() == "mine"
    assert command("--backbone_dir", "a", "b", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "Give --backbone_dir"),
        (["--backbone_dir", "a", "nowhere"], "no backbone.json in nowhere"),
        (["--backbone_dir", "a", "b/../a", "--output_dir", "out"], "have the same name"),
    ],
)
def test_wrong_folders_are_one_line_and_write_nothing(options, expected, command, tmp_path):
    code, _, error = command(*options)
    assert (code, error.count("\n")) == (1, 1)
    assert expected in error
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".onnx", ".pt2")]


def test_without_onnxruntime_the_command_says_that_nothing_was_compared(command, monkeypatch):
    find = formats.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *x: None if name == "onnxruntime" else find(name)
    )
    code, printed, _ = command("--backbone_dir", "a")
    assert code == 0
    assert printed.strip().endswith("onnxruntime is not installed.")
