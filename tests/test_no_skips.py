"""A run with a skipped test fails, so that no test is vacuous."""

import pytest

pytest_plugins = ["pytester"]

SKIPPING = {
    "none": "",
    "a test": "import pytest\n@pytest.mark.skip\ndef test_skipped(): pass\n",
    "a module": "import pytest\npytest.importorskip('absent')\ndef test_skipped(): pass\n",
    "while it runs": "import pytest\ndef test_skipped(): pytest.skip('no reason')\n",
}


@pytest.mark.parametrize("case", SKIPPING)
def test_a_run_with_a_skipped_test_fails_and_names_it(case, pytester):
    pytester.makepyfile(test_passing="def test_passes(): pass", test_other=SKIPPING[case])
    result = pytester.runpytest_inprocess("-p", "tests.conftest")
    skips = case != "none"
    assert result.ret == int(skips)
    printed = result.stdout.str()
    assert f"1 tests ran, {int(skips)} skipped: test_passing.py 1" in printed
    assert ("SKIPPED, so this run fails: test_other.py" in printed) == skips


@pytest.mark.slow
def test_so_does_a_run_in_several_processes(pytester):
    files = {"test_a": SKIPPING["a test"], "test_b": SKIPPING["a module"]}
    pytester.makepyfile(test_passing="def test_passes(): pass", **files)
    result = pytester.runpytest_inprocess("-p", "tests.conftest", "-n", "1")
    assert result.ret == 1
    printed = result.stdout.str()
    assert "1 tests ran, 2 skipped: test_passing.py 1" in printed
    assert all(f"SKIPPED, so this run fails: {name}.py" in printed for name in files)
