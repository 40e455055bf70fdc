"""A run with a skipped test fails, so that no test is vacuous."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PASSING = "def test_passes(): pass\n"
SKIPPING = {
    "none": "",
    "a test": "import pytest\n@pytest.mark.skip\ndef test_skipped(): pass\n",
    "a module": "import pytest\npytest.importorskip('absent')\ndef test_skipped(): pass\n",
    "while it runs": "import pytest\ndef test_skipped(): pytest.skip('no reason')\n",
}


@pytest.mark.parametrize(
    ("case", "processes"), [*((case, 0) for case in SKIPPING), ("a test", 1), ("a module", 1)]
)
def test_a_run_with_a_skipped_test_fails_and_names_it(case, processes, tmp_path):
    (tmp_path / "test_passing.py").write_text(PASSING)
    (tmp_path / "test_other.py").write_text(SKIPPING[case])
    (tmp_path / "pytest.ini").write_text("[pytest]")
    options = ["-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-n", str(processes)]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    skips = case != "none"
    assert result.returncode == int(skips), result.stdout + result.stderr
    assert f"1 tests ran, {int(skips)} skipped: test_passing.py 1" in result.stdout
    assert ("SKIPPED, so this run fails: test_other.py" in result.stdout) == skips
