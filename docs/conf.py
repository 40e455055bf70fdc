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
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx_codeautolink",
]
# sphinx-gallery reads tutorials/ and writes auto_tutorials/.
exclude_patterns = ["tutorials", "_templates", "build"]

# Inventories of other projects are downloaded, so an offline build has no links to them.
if os.environ.get("DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "torchvision": ("https://docs.pytorch.org/vision/stable", None),
        "lightly": ("https://docs.lightly.ai/self-supervised-learning", None),
        "pytorch_lightning": ("https://lightning.ai/docs/pytorch/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }

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


def setup(app):
    """Connects what is above."""
    app.connect("source-read", lead_links_into_the_site)
