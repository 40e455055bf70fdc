"""What importing the backbones loads, and the old place of the export functions."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import mixco_lightly
from mixco_lightly import backbones

PACKAGE = Path(mixco_lightly.__file__).parent
# None of these is needed to build, export or load a backbone. Lightning takes half a second.
HEAVY = {
    "jsonargparse",
    "kornia",
    "lightning",
    "matplotlib",
    "pytorch_lightning",
    "rich",
    "sklearn",
}


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )


def test_backbones_are_built_and_exported_without_heavy_packages():
    code = (
        "import sys\n"
        "import mixco_lightly.backbones\n"
        "print('torch' in sys.modules)\n"  # names are loaded on first use
        "import timm\n"
        "print(*sys.modules)\n"  # among them rich, with huggingface-hub 1.0
        "from mixco_lightly.backbones import MultiExitBackbone, create_backbone\n"
        "from mixco_lightly.backbones import export_backbone, load_backbone\n"
        "create_backbone('test_resnet', image_size=32)\n"
        "print(*sys.modules)"
    )
    torch_is_loaded, by_timm, modules = run(code).stdout.splitlines()
    assert torch_is_loaded == "False"
    assert "mixco_lightly.backbones.export" in modules.split()
    assert not HEAVY & (set(modules.split()) - set(by_timm.split()))


def test_the_old_place_of_the_export_works_and_warns_once(tmp_path):
    sys.modules.pop("mixco_lightly.export", None)
    program = tmp_path / "users.py"
    program.write_text(
        "from mixco_lightly.export import CONFIG_NAME, WEIGHTS_NAME, read_config\n"
        "from mixco_lightly.export import export_backbone, load_backbone\n"
        "import mixco_lightly.export\n"
    )
    with pytest.warns(DeprecationWarning, match=r"mixco_lightly\.backbones") as caught:
        names = runpy.run_path(str(program))
    # The warning points at the user's import.
    assert [(one.filename, one.lineno) for one in caught] == [(str(program), 1)]
    assert names["export_backbone"] is backbones.export_backbone
    assert names["load_backbone"] is backbones.load_backbone
    assert names["CONFIG_NAME"] == "backbone.json"
    assert names["WEIGHTS_NAME"] == "model.safetensors"
    assert callable(names["read_config"])


def test_nothing_in_the_package_uses_the_old_place():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            imported = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            assert "mixco_lightly.export" not in imported, path
