"""No mutant lives, and the gate that says so can tell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import MUTANTS

ROOT = Path(__file__).parent.parent
# Mutants that prove nothing, beside a real one, and what the gate makes of each.
GATE = """
import json, sys, tempfile
from pathlib import Path
from tests.mutants import HAND_SET, MUTANTS, Gate, Mutant, import_libraries

FILE = "mixco_lightly/loss/plain_and_mixed_loss.py"
TOTAL = "total = contrast + self.mix_weight * mix"
NO_TESTS = (HAND_SET[0], "-k", "no_such_test")
mutants = MUTANTS[:1] + [
    Mutant("changes nothing", FILE, TOTAL, TOTAL + "  # really", HAND_SET),
    Mutant("is not there", FILE, "no such text", "", HAND_SET),
    Mutant("is everywhere", FILE, "self", "this", HAND_SET),
    Mutant("cannot be imported", FILE, "import torch\\n", "import no_such_module\\n", HAND_SET),
    Mutant("has no tests", FILE, TOTAL, "total = contrast", NO_TESTS),
]
import_libraries()
with tempfile.TemporaryDirectory() as folder:
    gate = Gate(Path(folder).resolve())
    print(json.dumps({mutant.name: gate.check(mutant) for mutant in mutants}))
"""


def run(*arguments, timeout):
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_mutant_has_a_name_of_its_own_and_changes_text_that_is_there_once():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30
    for mutant in MUTANTS:
        assert (ROOT / mutant.file).read_text().count(mutant.old) == 1, mutant.name
        assert mutant.old != mutant.new


@pytest.mark.slow
def test_a_mutant_is_killed_and_those_that_prove_nothing_are_not():
    problems = json.loads(run("-c", GATE, timeout=200).splitlines()[-1])
    assert problems[MUTANTS[0].name] == ""
    assert "IT LIVES" in problems["changes nothing"]
    assert "is 0 times in" in problems["is not there"]
    assert "times in" in problems["is everywhere"]
    assert "not with a failed test" in problems["cannot be imported"]
    assert "end with 5 without it" in problems["has no tests"]


@pytest.mark.slow
def test_all_mutants_are_killed():
    printed = run("tests/mutants.py", timeout=3600)
    assert f"{len(MUTANTS)} of {len(MUTANTS)} mutants killed" in printed
