"""Builds the site: `make docs`.

The pages are the Markdown files of this folder, which also read well on GitHub. Parts of README.md,
CHANGELOG.md, CONTRIBUTING.md and SECURITY.md are included from the root. The tutorials run at every
build.
"""

import os
import re
import sys
import tomllib
from pathlib import Path
from posixpath import normpath

from sphinx.ext import intersphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # the tutorials and the reference show this clone

import mixco_lightly  # noqa: E402

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PYPROJECT.get("urls", {}).get("Repository", "https://github.com/OWNER/mixco-lightly")

project = "mixco-lightly"
author = "the mixco-lightly authors"
copyright = author
version = release = mixco_lightly.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx_codeautolink",
]
# sphinx-gallery reads tutorials/ and writes auto_tutorials/.
exclude_patterns = ["tutorials", "_templates", "build"]

# Where the names of other projects are documented. timm's site has no inventory: timm.inv is ours.
intersphinx_mapping = {"timm": ("https://huggingface.co/docs/timm", "timm.inv")}
# The others are downloaded, so a build without DOCS_ONLINE has no links to them. An inventory that
# cannot be read ends a build with it. Lightning's is not among them: it was gone for a while.
if os.environ.get("DOCS_ONLINE"):
    intersphinx_mapping |= {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "torchvision": ("https://docs.pytorch.org/vision/stable", None),
        "lightly": ("https://docs.lightly.ai/self-supervised-learning", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }

# A name of this package that leads nowhere is a warning. Other projects' names are not checked, nor
# are names inside modules, which the reference does not list.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!mixco_lightly\.).*"),
    ("py:.*", r"mixco_lightly\.\w+\.\w+\..*"),
]

myst_enable_extensions = ["colon_fence", "dollarmath", "attrs_inline"]
myst_heading_anchors = 4
suppress_warnings = ["config.cache"]

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
doctest_test_doctest_blocks = "default"
doctest_global_setup = "import torch"

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "auto_tutorials",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 0,
    "write_computation_times": False,
    "plot_gallery": "True",
    "reset_modules": ("matplotlib",),
    "notebook_images": False,
}

html_theme = "furo"
html_title = "mixco-lightly"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}

# Pages of the site that are files elsewhere in the repository.
PAGES = {
    "../README.md": "index.md",
    "../CHANGELOG.md": "CHANGELOG.md",
    "../CONTRIBUTING.md": "CONTRIBUTING.md",
    "../SECURITY.md": "SECURITY.md",
}
LINK = re.compile(r"(\]\()([^)\s:#]+)(#[^)\s]*)?(\))")


def lead_links_into_the_site(app, docname, source):
    """Makes links that work on GitHub work in the site.

    A file outside docs/ is a page of the site or stays on GitHub; a tutorial's source is its page.
    """

    def replace(match):
        start, path, anchor, end = match.groups()
        folder = str(Path(docname).parent)
        target = normpath(f"{folder}/{path}")
        up = "../" * docname.count("/")
        if target in PAGES:
            path = up + PAGES[target]
        elif target.startswith("tutorials/"):
            name = Path(target).stem.replace("README", "index")
            path = f"{up}auto_tutorials/{name}.rst"
        elif target.startswith("../"):
            kind = "tree" if (DOCS / target).is_dir() else "blob"
            path = f"{REPOSITORY}/{kind}/main/{target[3:]}"
        return f"{start}{path}{anchor or ''}{end}"

    source[0] = LINK.sub(replace, source[0])


def other_names(target):
    """The names of a thing in the packages above its module, and in our package that defines it."""
    module, _, name = target.rpartition(".")
    thing = getattr(sys.modules.get(module), name, None)
    parts = module.split(".")
    above = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    defining = getattr(thing, "__module__", None) or ""
    if thing is not None and defining.startswith("mixco_lightly."):
        above.append(".".join(defining.split(".")[:2]))
    for package in above:
        if thing is not None and getattr(sys.modules.get(package), name, None) is thing:
            yield f"{package}.{name}"


def link_by_another_name(app, env, node, contnode):
    """Links what is documented under another name than a docstring or a signature has.

    torch documents torch.nn.modules.module.Module as torch.nn.Module, and our reference has
    mixco_lightly.MixCoLoss, as users import it, as mixco_lightly.loss.MixCoLoss.
    """
    target = node.get("reftarget", "")
    python = env.get_domain("py")
    for name in other_names(target):
        node["reftarget"] = name
        link = python.resolve_xref(
            env, node["refdoc"], app.builder, node["reftype"], name, node, contnode
        ) or intersphinx.missing_reference(app, env, node, contnode)
        if link is not None:
            return link
    node["reftarget"] = target
    return None


def setup(app):
    """Connects what is above."""
    app.connect("source-read", lead_links_into_the_site)
    app.connect("missing-reference", link_by_another_name, priority=900)  # after intersphinx
