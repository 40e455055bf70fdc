"""Writes a notebook for each example: python examples/create_notebooks.py, or make notebooks.

A notebook has the code of its script with three changes. It installs the package first. Nothing is
under ``if __name__ == "__main__":``, because no worker process imports a notebook. And several GPUs
are used through Lightning's strategy for notebooks.
"""

import textwrap
from pathlib import Path

import jupytext

EXAMPLES = Path(__file__).parent
FOLDERS = ["pytorch", "pytorch_lightning", "pytorch_lightning_distributed"]
INSTALL = "pip install mixco-lightly"


def create_notebook(script: str) -> str:
    """Creates the notebook of a script, the same one for the same script.

    Args:
        script: The script's text.

    Returns:
        The text of the ipynb file.
    """
    title, _, rest = script.partition(f"#\n# {INSTALL}\n#\n")
    definitions, _, main = rest.partition('\nif __name__ == "__main__":')
    body = textwrap.dedent(main.partition("\n")[2]).replace(
        'strategy="ddp"', 'strategy="ddp_notebook"'
    )
    # A magic in a comment becomes one in a cell.
    light = f"{title}\n# %{INSTALL}\n\n{definitions}\n{body}"
    notebook = jupytext.reads(light, fmt="py:light")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = str(index), {}
    return jupytext.writes(notebook, fmt="ipynb") + "\n"


def notebook_paths() -> dict[Path, Path]:
    """Returns each example's script and its notebook."""
    scripts = [path for folder in FOLDERS for path in sorted((EXAMPLES / folder).glob("*.py"))]
    return {
        path: (EXAMPLES / "notebooks" / path.relative_to(EXAMPLES)).with_suffix(".ipynb")
        for path in scripts
    }


def main() -> None:
    """Writes all notebooks and removes those without a script."""
    paths = notebook_paths()
    for stale in set((EXAMPLES / "notebooks").rglob("*.ipynb")) - set(paths.values()):
        stale.unlink()
    for script, notebook in paths.items():
        notebook.parent.mkdir(parents=True, exist_ok=True)
        notebook.write_text(create_notebook(script.read_text()))


if __name__ == "__main__":
    main()
