"""Writes backbones for other runtimes, ONNX and torch.export, and compares the files with them."""

from __future__ import annotations

import io
import json
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.backbones.trace import reason_of
from mixco_lightly.data.eval_transform import INTERPOLATION
from mixco_lightly.files import replace_file

ONNX_SUFFIX = ".onnx"
PROGRAM_SUFFIX = ".pt2"
# Largest difference of the features, as a part of the largest feature. Rounding in float32 is about
# 1e-6, and a deep network multiplies it; a wrong layer or weight changes features by far more.
TOLERANCE = 1e-4
# Name of the description inside a .pt2 file.
_DESCRIPTION = "backbone.json"
_INPUT, _OUTPUT = "images", "features"


def describe_input(backbone: Backbone) -> dict[str, str]:
    """Describes the images that a backbone takes, as texts for a file's metadata.

    Args:
        backbone: The backbone.

    Returns:
        ``name``, ``image_size``, ``in_chans``, ``feature_dim``, and the evaluation transform:
        ``resize`` (length of the shorter side), ``interpolation``, ``crop``, and ``mean`` and
        ``std`` of each channel in [0, 1]. Numbers and lists are written as JSON, an unknown mean
        or std as ``null``.

    Examples:
        >>> from mixco_lightly import create_backbone
        >>> from mixco_lightly.backbones.formats import describe_input
        >>> backbone = create_backbone("test_resnet", image_size=32)
        >>> backbone.mean, backbone.std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        >>> facts = describe_input(backbone)
        >>> facts["resize"], facts["crop"], facts["interpolation"], facts["mean"]
        ('32', '32', 'bilinear', '[0.5, 0.5, 0.5]')
    """
    facts = {
        "name": backbone.name,
        "image_size": backbone.image_size,
        "in_chans": backbone.in_chans,
        "feature_dim": backbone.feature_dim,
        "resize": backbone.resize,
        "interpolation": INTERPOLATION,
        "crop": backbone.image_size,
        "mean": None if backbone.mean is None else list(backbone.mean),
        "std": None if backbone.std is None else list(backbone.std),
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in facts.items()
    }


def export_onnx(backbone: Backbone, path: str | Path) -> Path:
    """Writes a backbone as ONNX.

    The input ``images`` has shape (N, in_chans, image_size, image_size) for any N, float32: images
    as ``backbone.transform`` returns them, normalised. The output ``features`` has shape
    (N, feature_dim). The file's ``metadata_props`` say how to prepare images; they are those of
    :func:`mixco_lightly.backbones.formats.describe_input`.

    Args:
        backbone: The backbone, on any device, in any mode and precision, which stay as they are.
            The file computes in float32, as in eval mode.
        path: File to write. Its folder is created if missing.

    Returns:
        The path.

    Raises:
        ValueError: If ``onnx`` or ``onnxscript`` is not installed, or if torch cannot convert the
            network, or if it has more than the 2 GB that one ONNX file holds.
        WriteError: If the file cannot be written.

    Examples:
        >>> from mixco_lightly.backbones import export_onnx
        >>> export_onnx(backbone, "runs/moco/backbone.onnx")  # doctest: +SKIP
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"ONNX needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'mixco-lightly[onnx]'"
        )
    program = _trace(backbone)
    try:
        converted = torch.onnx.export(
            program, input_names=[_INPUT], output_names=[_OUTPUT], dynamo=True, verbose=False
        )
        assert converted is not None
        converted.model.metadata_props.update(describe_input(backbone))
        content = converted.model_proto.SerializeToString()
    except Exception as error:  # the converter fails with errors of any kind
        raise ValueError(
            f"torch cannot convert {backbone.name} to ONNX: {_cause_of(error)}. export_program "
            "(--format torch) needs no conversion."
        ) from error
    return _write(Path(path), content)


def export_program(backbone: Backbone, path: str | Path) -> Path:
    """Writes a backbone as a program of torch.export, which runs without this package and timm.

    ``torch.export.load(path).module()`` maps images (N, in_chans, image_size, image_size), for any
    N, to features (N, feature_dim), on the CPU. The images are normalised, as
    ``backbone.transform`` returns them. The file's extra file ``backbone.json`` says how to prepare
    them.

    Args:
        backbone: The backbone, on any device, in any mode and precision, which stay as they are.
            The file computes in float32, as in eval mode.
        path: File to write, by convention with the suffix ``.pt2``. Its folder is created if
            missing.

    Returns:
        The path.

    Raises:
        ValueError: If torch cannot trace the network.
        WriteError: If the file cannot be written.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from mixco_lightly import create_backbone
        >>> from mixco_lightly.backbones import export_program
        >>> backbone = create_backbone("test_resnet", image_size=32)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = export_program(backbone, Path(directory, "backbone.pt2"))
        ...     program = torch.export.load(path).module()
        >>> program(torch.rand(5, 3, 32, 32)).shape == (5, backbone.feature_dim)
        True
    """
    content = io.BytesIO()
    description = json.dumps(describe_input(backbone), indent=2)
    torch.export.save(_trace(backbone), content, extra_files={_DESCRIPTION: description})
    return _write(Path(path), content.getvalue())


def measure_difference(backbone: Backbone, path: str | Path) -> float:
    """Runs a written file on random images and compares its features with the backbone's.

    Batches of one and of three images are compared, on the CPU.

    Args:
        backbone: The backbone that was written.
        path: A file of :func:`mixco_lightly.backbones.export_onnx`, which runs in onnxruntime, or
            of :func:`mixco_lightly.backbones.export_program`.

    Returns:
        The largest difference, as a part of the backbone's largest feature.

    Raises:
        ModuleNotFoundError: If the file is ONNX and onnxruntime is not installed.
    """
    network = _frozen_copy(backbone)
    size = (backbone.in_chans, backbone.image_size, backbone.image_size)
    generator = torch.Generator().manual_seed(0)
    differences = []
    for count in (1, 3):
        images = torch.randn(count, *size, generator=generator)
        with torch.no_grad():
            expected = network(images)
        error = (_run_file(Path(path), images) - expected).abs().max()
        differences.append((error / expected.abs().max()).item())
    # Not max(), which ignores a NaN that is not the first.
    return torch.tensor(differences, dtype=torch.float64).max().item()


def check_file(backbone: Backbone, path: str | Path) -> float:
    """Compares a written file with its backbone, and removes it if the features differ.

    Args:
        backbone: The backbone that was written.
        path: The file.

    Returns:
        The largest difference, as :func:`mixco_lightly.backbones.formats.measure_difference`.

    Raises:
        ValueError: If it is above ``TOLERANCE``, 1e-4. The file is then removed.
    """
    difference = measure_difference(backbone, path)
    if not difference <= TOLERANCE:  # not for NaN either
        Path(path).unlink()
        raise ValueError(
            f"{path} was removed: its features differ from those of {backbone.name} by "
            f"{difference:.1e} of the largest feature, and at most {TOLERANCE:.0e} is rounding."
        )
    return difference


def _run_file(path: Path, images: Tensor) -> Tensor:
    """Computes the features of a written file."""
    if path.suffix == ONNX_SUFFIX:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (features,) = session.run([_OUTPUT], {_INPUT: images.numpy()})
        return torch.from_numpy(features)
    with torch.no_grad():
        result: Tensor = torch.export.load(path).module()(images)
    return result


def _trace(backbone: Backbone) -> Any:
    """Returns the graph of the network for batches of any size."""
    size = (backbone.in_chans, backbone.image_size, backbone.image_size)
    batch = torch.export.Dim(_INPUT)
    try:
        # Two images, because torch takes a size of 1 for a constant.
        images = torch.zeros(2, *size)
        with torch.no_grad():
            return torch.export.export(
                _frozen_copy(backbone), (images,), dynamic_shapes=({0: batch},)
            )
    except Exception as error:  # torch fails with errors of any kind
        raise ValueError(f"torch cannot trace {backbone.name}: {reason_of(error)}") from error


def _frozen_copy(backbone: Backbone) -> nn.Module:
    """Returns a copy of the timm network on the CPU, in float32 and eval mode."""
    return deepcopy(backbone.model).to("cpu", torch.float32).eval()


def _cause_of(error: BaseException) -> str:
    """Returns the first line of the error that torch's converter wraps in a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason_of(Exception(str(error).strip().partition("\n")[0]))


def _write(path: Path, content: bytes) -> Path:
    """Replaces a file, whose folder may not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        file.write(content)
    return path
