"""A run with a skipped test fails, so that no test is vacuous."""

import pytest

pytest_plugins = ["pytester"]

SKIPPING = {
    "none": "",
    "a test": "import pytest\n@pytest.mark.skip\ndef test_skipped(): pass\n",
    "a module": "import pytest\npytest.importorskip('absent')\ndef test_skipped(): pass\n",
    "while it runs": "import pytest\ndef test_skipped(): pytest.skip('no reason')\n",
}


@pytest.mark.parametrize(
    ("case", "options"),
    [*((case, []) for case in SKIPPING), ("a test", ["-n", "1"]), ("a module", ["-n", "1"])],
)
def test_a_run_with_a_skipped_test_fails_and_names_it(case, options, pytester):
    pytester.makepyfile(test_passing="def test_passes(): pass", test_other=SKIPPING[case])
    result = pytester.runpytest_inprocess("-p", "tests.conftest", *options)
    skips = case != "none"
    assert result.ret == int(skips)
    printed = result.stdout.str()
    assert f"1 tests ran, {int(skips)} skipped: test_passing.py 1" in printed
    assert ("SKIPPED, so this run fails: test_other.py" in printed) == skips
