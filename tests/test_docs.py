"""The site's sources: what is in its menu, its reference, its tutorials. `make docs` builds it."""

import ast
import importlib
import re
from pathlib import Path

import pytest
import yaml

from tests.test_rooms import PACKAGES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATED = {"build", "auto_tutorials", "tutorials", "generated", "_templates"}
SOURCES = {
    path.relative_to(DOCS).with_suffix("").as_posix(): path.read_text()
    for suffix in ("md", "rst")
    for path in sorted(DOCS.rglob(f"*.{suffix}"))
    if not GENERATED & set(path.relative_to(DOCS).parts)
}
TUTORIALS = sorted((DOCS / "tutorials").glob("*.py"))
# Lines of a toctree that are no options: names of pages, without a suffix.
TOCTREES = {
    "md": r"^```\{toctree\}\n(.*?)^```",
    "rst": r"^\.\. toctree::\n(.*?)(?=^\S|\Z)",
}


def pages_below(page):
    """The pages that a page's toctrees name, as paths below docs/."""
    suffix = "md" if (DOCS / f"{page}.md").is_file() else "rst"
    blocks = re.findall(TOCTREES[suffix], SOURCES[page], re.DOTALL | re.MULTILINE)
    names = re.findall(r"^ *([\w./-]+)$", "\n".join(blocks), re.MULTILINE)
    folder = (DOCS / page).parent
    return [(folder / name).resolve().relative_to(DOCS.resolve()).as_posix() for name in names]


def test_every_page_is_once_in_a_menu_and_every_entry_is_a_page():
    entries = ["index", *(name for page in SOURCES for name in pages_below(page))]
    entries.remove("auto_tutorials/index")  # sphinx-gallery writes it
    assert sorted(entries) == sorted(SOURCES)


@pytest.mark.parametrize("package", [name for name in PACKAGES if "." in name])
def test_every_public_name_of_a_package_is_once_on_its_page_of_the_reference(package):
    text = SOURCES[f"reference/{package.partition('.')[2]}"]
    assert f"\n.. currentmodule:: {package}\n" in text
    lists = re.findall(r"^\.\. autosummary::\n(.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    named = re.findall(r"^   (\w+)$", "\n".join(lists), re.MULTILINE)
    named += re.findall(r"^\.\. py:data:: (\w+)$", text, re.MULTILINE)
    assert sorted(named) == sorted(importlib.import_module(package).__all__)


def test_every_name_of_the_top_level_is_linked_from_the_reference():
    linked = re.findall(r"`~mixco_lightly\.(\w+)\.(\w+)`", SOURCES["reference/index"])
    assert sorted(name for _, name in linked) == sorted(
        importlib.import_module("mixco_lightly").__all__
    )
    for package, name in linked:
        assert name in importlib.import_module(f"mixco_lightly.{package}").__all__


def test_the_site_has_the_version_of_the_package():
    (line,) = re.findall(r"^version = .*$", (DOCS / "conf.py").read_text(), re.MULTILINE)
    assert line == "version = release = mixco_lightly.__version__"


def test_there_are_six_tutorials():
    assert len(TUTORIALS) == 6


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_compiles_and_starts_with_its_title(path):
    tree = ast.parse(path.read_text())
    compile(tree, str(path), "exec")
    title, line = ast.get_docstring(tree).splitlines()[:2]
    assert title
    assert re.fullmatch("=+", line)
    assert len(line) >= len(title)


INCLUDE = re.compile(r"^```\{(?:literal)?include\} (\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page, text in SOURCES.items() if INCLUDE.search(text)])
def test_what_a_page_includes_is_there_and_its_marks_are_there_once(page):
    for name, options in INCLUDE.findall(SOURCES[page]):
        text = ((DOCS / page).parent / name).read_text()
        for mark in re.findall(r'^:(?:start-after|end-before): "(.*)"$', options, re.MULTILINE):
            assert mark in text, mark
        after = re.search(r'^:start-after: "(.*)"$', options, re.MULTILINE)
        before = re.search(r'^:end-before: "(.*)"$', options, re.MULTILINE)
        if after and before:
            assert before[1] in text.partition(after[1])[2]


def sentences(text):
    """The sentences of at least 60 characters outside code, each on one line."""
    text = " ".join(re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE).split())
    return {sentence for sentence in re.split(r"(?<=[.:]) ", text) if len(sentence) >= 60}


@pytest.mark.parametrize("page", ["index", "getting_started"])
def test_the_first_pages_include_the_readme_and_copy_nothing(page):
    text = SOURCES[page]
    assert "```{include} ../README.md" in text
    assert not sentences(text) & sentences((ROOT / "README.md").read_text())


def test_only_the_main_branch_deploys_the_site():
    workflow = yaml.safe_load((ROOT / ".github/workflows/docs.yml").read_text())
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {"contents": "read"}
    assert jobs["deploy"]["if"] == "github.ref == 'refs/heads/main'"
    assert jobs["deploy"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert "permissions" not in jobs["build"]


def test_what_our_inventory_of_timm_lists_is_in_timm():
    header, _, _, *lines = (DOCS / "timm.inv").read_text().splitlines()
    assert header == "# Sphinx inventory version 1"  # plain text; the second version is compressed
    for name, kind, page in (line.split() for line in lines):
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function))
        assert (kind, page) in {("function", "reference/models"), ("function", "reference/data")}
