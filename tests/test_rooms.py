"""The house's rules: which room imports which, what a command alone may do, what is exported."""

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, get_origin

import pytest

ROOT = Path(__file__).parent.parent
# A room imports only rooms of a lower rank, and itself.
RANKS = {
    **dict.fromkeys(["files", "machine", "lazy"], 0),
    "data": 1,
    "loss": 2,
    "backbones": 3,
    "export": 4,  # the old name of backbones.export
    "models": 4,
    "evaluation": 5,
    # It draws what it is handed; the rooms after it gather that and call it.
    "reports": 6,
    "training": 7,
    "studies": 8,
    "recipes": 9,
    "__main__": 9,
}
COMMANDS = {"recipes", "__main__"}
# What the commands share: they end the program for them, or read its arguments.
EXITS = {"training.command_line", "training.errors", "training.option_parser", "training.recipe"}
READS_ARGUMENTS = {"training.command_line", "training.option_parser"}
HEAVY = {"pytorch_lightning", "rich", "matplotlib", "kornia", "jsonargparse", "sklearn"}


def name_of(path):
    """A module's name below mixco_lightly, such as data.collate; "" is the package itself."""
    relative = path.relative_to(ROOT).with_suffix("")
    parts = relative.parts[1:] if relative.parts[0] == "mixco_lightly" else relative.parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {
    name_of(path): path
    for folder in ("mixco_lightly", "recipes")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
PACKAGES = [
    f"mixco_lightly.{name}".rstrip(".")
    for name, path in MODULES.items()
    if path.name == "__init__.py" and "lazy_exports(" in path.read_text()
]
packages = pytest.mark.parametrize("package", PACKAGES)


def every_module(check):
    """Makes one test of a check of a module; a test for each module would take longer."""

    def test():
        wrong = {}
        for module in MODULES:
            try:
                check(module)
            except AssertionError as error:
                wrong[module] = str(error)
        assert not wrong

    test.__name__ = check.__name__
    return test


@cache
def tree_of(module):
    return ast.parse(MODULES[module].read_text())


def room_of(module):
    return module.partition(".")[0]


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports_of(module, type_checking=True):
    """Full names that a module imports, in functions too, as modules or as names of modules."""
    nodes, found = [tree_of(module)], []
    while nodes:
        node = nodes.pop()
        if is_type_checking(node) and not type_checking:
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def own_imports_of(module, type_checking=True):
    """The modules of this package that a module imports; "" is the package itself."""
    own = set()
    for name in imports_of(module, type_checking):
        head, _, rest = name.partition(".")
        if head == "mixco_lightly":
            # A name of a module is not a module.
            own.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return own


def test_the_search_sees_the_package_and_its_imports():
    assert len(MODULES) > 60
    assert {"data", "loss.key_queue", "recipes.moco"} <= MODULES.keys()
    assert "data.mixture" in own_imports_of("loss.plain_and_mixed_loss")
    assert "data.mixture" in own_imports_of("data")
    assert "data.mixture" not in own_imports_of("data", type_checking=False)
    assert set(map(room_of, MODULES)) - {""} == set(RANKS)
    rooms = {"data", "loss", "backbones", "models", "evaluation", "training"}
    assert {"mixco_lightly", *(f"mixco_lightly.{room}" for room in rooms)} <= set(PACKAGES)


@every_module
def test_a_room_imports_only_the_rooms_before_it(module):
    if not module:
        return  # the package exports names of every room
    room = room_of(module)
    wrong = [
        other
        for other in own_imports_of(module) - {""}
        if room_of(other) != room and RANKS[room_of(other)] >= RANKS[room]
    ]
    assert not wrong


@every_module
def test_nothing_inside_imports_from_the_package_itself(module):
    assert "" not in own_imports_of(module) or room_of(module) in COMMANDS


@every_module
def test_recipes_do_not_import_each_other_and_nobody_imports_them(module):
    pages = {name.partition(".")[2] for name in MODULES if room_of(name) == "recipes"}
    assert not {name.partition(".")[0] for name in imports_of(module)} & pages
    assert not [name for name in own_imports_of(module) if room_of(name) == "recipes"]


def test_no_imports_are_circular():
    waiting = {name: own_imports_of(name, type_checking=False) for name in MODULES}
    while True:
        ready = {name for name, needed in waiting.items() if not needed & waiting.keys()}
        ready |= waiting.keys() - set().union(*waiting.values())  # only on the way to a circle
        if not ready:
            break
        for name in ready:
            del waiting[name]
    assert not {name: needed & waiting.keys() for name, needed in waiting.items()}


def calls_of(module):
    return {ast.unparse(x.func) for x in ast.walk(tree_of(module)) if isinstance(x, ast.Call)}


@every_module
def test_only_commands_end_the_program(module):
    if room_of(module) in COMMANDS or module in EXITS:
        return
    assert not calls_of(module) & {"sys.exit", "exit", "quit", "SystemExit"}


@every_module
def test_only_the_parser_reads_the_arguments_of_the_program(module):
    if module == "__main__" or module in READS_ARGUMENTS:
        return
    assert "sys.argv" not in ast.unparse(tree_of(module))


@every_module
def test_no_own_module_is_imported_by_a_text(module):
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            text = node.args[0]
            is_third_party = isinstance(text, ast.Constant) and "mixco" not in text.value
            # data.own_code imports what the user names: code of theirs, not of this package.
            assert is_third_party or module in {"lazy", "data.own_code"}


@every_module
def test_no_module_is_longer_than_350_lines(module):
    assert len(MODULES[module].read_text().splitlines()) <= 350


def exports_of(package):
    """What a package's lazy_exports names: each name's module."""
    module = importlib.import_module(package)
    path = Path(module.__file__)
    (call,) = (
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy_exports"
    )
    homes = {x.arg: ast.literal_eval(x.value).split() for x in call.keywords}
    return {name: f"{package}.{home}" for home, names in homes.items() for name in names}


@packages
def test_exported_names_are_those_that_type_checkers_see(package):
    path = Path(importlib.import_module(package).__file__)
    seen = {}
    for block in filter(is_type_checking, ast.parse(path.read_text()).body):
        for node in block.body:
            assert isinstance(node, ast.ImportFrom)
            for alias in node.names:
                assert alias.asname == alias.name, "a re-export is written `name as name`"
                seen[alias.name] = node.module
    assert seen == exports_of(package)
    assert sorted(seen) == importlib.import_module(package).__all__


@packages
def test_no_exported_name_is_the_name_of_a_module(package):
    folder = Path(importlib.import_module(package).__file__).parent
    modules = {path.stem for path in folder.iterdir()}
    assert not exports_of(package).keys() & modules


def read_docstring(module, name):
    """The docstring of a constant: the text below its assignment."""
    body = ast.parse(Path(importlib.import_module(module).__file__).read_text()).body
    for node, below in pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(x, ast.Name) and x.id == name for x in targets):
            text = below.value if isinstance(below, ast.Expr) else None
            return text.value if isinstance(text, ast.Constant) else None
    return None


def describe(package, name):
    """The first line of an exported name's docstring, which must be its own."""
    value = getattr(importlib.import_module(package), name)
    if get_origin(value) is Annotated:
        return f"Type of an option: {value.__metadata__[0]}."
    if callable(value):
        docstring = value.__doc__
        assert value.__module__.startswith("mixco_lightly."), f"{package}.{name} is not ours"
    else:
        home = exports_of(package)[name]
        if home in PACKAGES:
            home = exports_of(home)[name]
        docstring = read_docstring(home, name)
    # A NamedTuple or dataclass without a docstring gets a generated one: "Name(field, ...)".
    assert docstring, f"{package}.{name} has no docstring"
    assert not docstring.startswith(f"{name}("), f"{package}.{name} has no docstring of its own"
    line = " ".join(docstring.strip().partition("\n\n")[0].split())
    return re.sub(r" \[\d\]", "", line)  # references into the docstring


def list_api():
    """Writes what docs/api.md must be."""
    lines = ["# API", "", "Every public name with the first line of its docstring.", ""]
    for package in PACKAGES:
        lines += [f"## `{package}`", ""]
        names = importlib.import_module(package).__all__
        lines += [f"- `{name}`: {describe(package, name)}" for name in names] + [""]
    return "\n".join(lines[:-1])


@packages
def test_every_exported_name_has_a_docstring_and_stands_in_the_api_list(package):
    sections = (ROOT / "docs/api.md").read_text().split("\n## ")
    section = next((text for text in sections if text.startswith(f"`{package}`\n")), "")
    listed = dict(re.findall(r"^- `(\w+)`: (.+)$", section, flags=re.MULTILINE))
    names = importlib.import_module(package).__all__
    # `python -m tests.test_rooms > docs/api.md` writes the list anew.
    assert listed == {name: describe(package, name) for name in names}


LOAD = """
import sys
import mixco_lightly
print(*sys.modules)
import lightly.loss, lightly.transforms, timm, torchvision
print(*sys.modules)
for room in ("data", "loss", "backbones"):
    package = __import__(f"mixco_lightly.{room}", fromlist=["__all__"])
    for name in package.__all__:
        getattr(package, name)
    print(*sys.modules)
"""


@pytest.fixture(scope="module")
def loaded():
    """Modules that are loaded after the package, after what it builds on, and after each room."""
    result = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, check=True, timeout=120
    )
    return [set(line.split()) for line in result.stdout.splitlines()]


def test_importing_the_package_takes_no_third_party_along(loaded):
    assert "mixco_lightly" in loaded[0]
    assert not loaded[0] & (HEAVY | {"torch", "lightly", "timm", "numpy"})


@pytest.mark.parametrize(("place", "room"), enumerate(["data", "loss", "backbones"], start=2))
def test_a_room_for_own_loops_loads_nothing_heavy_of_its_own_doing(place, room, loaded):
    assert any(name.startswith(f"mixco_lightly.{room}.") for name in loaded[place])
    assert not (loaded[place] - loaded[1]) & HEAVY


if __name__ == "__main__":
    print(list_api())
