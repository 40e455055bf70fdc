import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mixco_lightly

HEAVY = ["pytorch_lightning", "sklearn", "rich", "matplotlib"]


ROOT = Path(__file__).parent.parent


def normalise(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared():
    """Distributions that pyproject.toml names as dependencies, without those that they bring."""
    text = (ROOT / "pyproject.toml").read_text()
    # Not with tomllib, which Python 3.10 does not have.
    block = re.search(r"^dependencies = \[(.*?)^\]$", text, re.MULTILINE | re.DOTALL).group(1)
    return {normalise(name) for name in re.findall(r'^ *"([\w.-]+)', block, re.MULTILINE)}


def imported(folder):
    """Top-level names that the Python files of a folder import, in functions too."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("folder", ["mixco_lightly", "recipes"])
def test_every_import_is_of_a_distribution_that_pyproject_names(folder):
    owners = importlib.metadata.packages_distributions()
    own = {"mixco_lightly", *(path.stem for path in (ROOT / "recipes").glob("*.py"))}
    third_party = imported(folder) - set(sys.stdlib_module_names) - own
    assert {"torch", "numpy", "pytorch_lightning"} <= third_party
    names = declared()
    assert {"torch", "scikit-learn", "jsonargparse"} <= names
    # A package that another one brings, as scikit-learn brings scipy, has to be named all the same.
    missing = {x for x in third_party if not names & set(map(normalise, owners.get(x, [])))}
    assert not missing


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
