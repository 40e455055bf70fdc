"""What is installed: the distributions that pyproject.toml names, and the version."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mixco_lightly

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()
# What users of the package have anyway; the base install adds these and what they bring.
GIVEN = ["torch", "torchvision", "lightly", "timm", "scikit-learn", "rich"]


# Used where the user has installed it; the extra of that name does.
LOOKED_FOR = {"umap"}


def normalise(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(key):
    """Distributions in a list of pyproject.toml, without those that they bring."""
    block = re.search(rf"^{key} = \[(.*?)^\]$", PYPROJECT, re.MULTILINE | re.DOTALL).group(1)
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
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                names |= {x.value for x in node.args if isinstance(x, ast.Constant)}
    return names


def distributions_of(folder):
    """The distributions, each with its import name, that a folder's files import."""
    owners = importlib.metadata.packages_distributions()
    own = {"mixco_lightly", *(path.stem for path in (ROOT / "recipes").glob("*.py"))}
    third_party = imported(folder) - set(sys.stdlib_module_names) - own
    return {name: set(map(normalise, owners.get(name, []))) for name in third_party}


@pytest.mark.parametrize("folder", ["mixco_lightly", "recipes"])
def test_every_import_is_of_a_distribution_that_pyproject_names(folder):
    extras = ("recipes", "huggingface", "onnx", "loggers")
    names = declared("dependencies").union(*(declared(extra) for extra in extras))
    assert {"torch", "scikit-learn", "jsonargparse"} <= names
    # A package that another one brings, as scikit-learn brings scipy, has to be named all the same.
    missing = {name for name, owners in distributions_of(folder).items() if not names & owners}
    assert not missing - LOOKED_FOR


@pytest.mark.parametrize("room", ["loss", "backbones", "models", "evaluation"])
def test_rooms_for_own_loops_import_nothing_that_only_the_extra_installs(room):
    # backbones.formats imports onnxruntime inside the function that needs it.
    base = declared("dependencies") | (declared("onnx") if room == "backbones" else set())
    assert all(base & owners for owners in distributions_of(f"mixco_lightly/{room}").values())


def test_nothing_is_declared_that_is_not_imported():
    named = declared("dependencies") | declared("recipes")
    assert not named - set().union(
        *distributions_of("mixco_lightly").values(), *distributions_of("recipes").values()
    )


def closure(names):
    """Distributions with all that they require, without extras."""
    found, waiting = set(), set(names)
    while waiting:
        name = normalise(waiting.pop())
        found.add(name)
        requirements = map(Requirement, importlib.metadata.requires(name) or [])
        waiting |= {
            x.name
            for x in requirements
            if x.marker is None or x.marker.evaluate({"extra": ""})
            if normalise(x.name) not in found
        }
    return found


def test_the_base_install_adds_nothing_to_what_its_users_have():
    assert declared("dependencies") <= closure(GIVEN)
    assert not declared("recipes") & declared("dependencies")
    assert not {"jsonargparse", "kornia"} & closure(GIVEN)


def test_the_list_of_packages_is_complete():
    listed = re.search(r"^packages = \[(.*?)^\]$", PYPROJECT, re.MULTILINE | re.DOTALL).group(1)
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "mixco_lightly").rglob("*.py")
    }
    assert set(re.findall(r'"([\w.]+)"', listed)) == folders | {"mixco_lightly.recipes"}


def test_version_is_the_one_installed():
    assert mixco_lightly.__version__ == importlib.metadata.version("mixco-lightly")
