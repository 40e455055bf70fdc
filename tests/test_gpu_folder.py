"""``make test-gpu`` runs tests/gpu, nothing else does, and without a GPU it fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests import conftest

ROOT = Path(__file__).parent.parent


def run_pytest(*options):
    """Pytest in a process that sees no GPU."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, options)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_make_test_gpu_fails_in_one_line_without_a_gpu():
    makefile = (ROOT / "Makefile").read_text()
    (options,) = re.findall(
        r"^test-gpu:.*\n\t\$\(BIN\)/python -m pytest (.*)$", makefile, flags=re.MULTILINE
    )
    result = run_pytest(*options.split())
    assert result.returncode != 0
    assert "passed" not in result.stdout
    (line,) = filter(None, result.stderr.splitlines())
    assert line.startswith("ERROR: tests/gpu needs a GPU")


def test_the_default_run_does_not_collect_the_tests_for_gpus():
    assert sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
    assert "gpu" in conftest.collect_ignore
