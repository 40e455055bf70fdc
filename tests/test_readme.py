"""The README's code runs, and its change to a Lightly pipeline is the three lines it says."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
(SELFCON,) = (code for code in CODE if "SelfConLoss" in code)
AFTER, BEFORE = (code for code in CODE if "DataLoader" in code)


@pytest.mark.parametrize("code", [BEFORE, AFTER], ids=["before", "after"])
def test_the_pipeline_runs_and_its_loss_is_finite(code, capsys):
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)


def test_the_selfcon_example_runs_and_all_code_of_the_readme_is_tested():
    exec(compile(SELFCON, "README.md", "exec"), {})  # noqa: S102
    assert len(CODE) == 3


def test_the_shown_difference_is_that_of_the_two_pipelines_but_for_their_imports():
    before, after = (
        [line for line in code.splitlines() if "import" not in line] for code in (BEFORE, AFTER)
    )
    changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    (shown,) = re.findall(r"```diff\n(.*?)```", README, flags=re.DOTALL)
    assert shown.splitlines() == [line for old, new in changed for line in (f"-{old}", f"+{new}")]
    assert len(changed) == 3


def test_every_recipe_and_file_that_the_readme_names_exists():
    root = Path(__file__).parent.parent
    named = set(re.findall(r"(?:mixco_lightly|recipes|docs)/[\w/.-]+\.(?:py|png|yaml)", README))
    assert len(named) > 5
    assert not [name for name in named if not (root / name).is_file()]
