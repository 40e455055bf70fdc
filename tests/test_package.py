import importlib.metadata
import inspect
import subprocess
import sys

import pytest

import mixco_lightly

HEAVY = ["pytorch_lightning", "sklearn", "rich", "matplotlib"]


@pytest.fixture(scope="module")
def modules_after_import():
    code = "import sys, mixco_lightly; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(result.stdout.split())


@pytest.mark.parametrize("module", HEAVY)
def test_import_leaves_heavy_packages_alone(module, modules_after_import):
    assert "mixco_lightly" in modules_after_import
    assert module not in modules_after_import


@pytest.mark.parametrize("name", mixco_lightly.__all__)
def test_public_name_exists_with_a_docstring_of_its_own(name):
    public = getattr(mixco_lightly, name)
    assert callable(public)
    # A NamedTuple without a docstring gets a generated one: "Name(field, ...)".
    assert public.__doc__
    assert not public.__doc__.startswith(f"{name}(")
    assert inspect.getmodule(public).__name__.startswith("mixco_lightly.")


def test_public_names_are_unique():
    assert len(set(mixco_lightly.__all__)) == len(mixco_lightly.__all__)


def test_version_is_the_one_installed():
    assert mixco_lightly.__version__ == importlib.metadata.version("mixco-lightly")
