"""The committed studies: their tables follow from their runs, and the README's from them."""

import json
import statistics
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
STUDIES = sorted((ROOT / "recipes" / "results").glob("*/results.json"))


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import compare

    return compare


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_the_table_of_a_study_follows_from_its_runs(path, compare):
    assert path.with_name("results.md").read_text() == compare.render(read(path))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_a_study_has_every_run_of_its_preset_and_no_other(path, compare, tmp_path):
    results = read(path)
    preset = yaml.safe_load((ROOT / "recipes" / "presets" / f"{path.parent.name}.yaml").read_text())
    preset.pop("output_dir")
    assert results["question"] == preset["question"]
    study = compare.CompareConfig(**preset)
    planned = {
        (run.group, run.arm, run.options["seed"]): {
            name: value for name, value in run.options.items() if name != "data_dir"
        }
        for run in compare.plan(study, tmp_path)
    }
    measured = {(row["group"], row["arm"], row["seed"]): row["options"] for row in results["runs"]}
    assert len(results["runs"]) == len(measured)
    assert measured == planned


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_the_readmes_rows_of_a_study_are_those_of_its_table(path):
    table = path.with_name("results.md").read_text()
    readme = (ROOT / "README.md").read_text()
    _, _, rest = readme.partition(f"<!-- {path.parent.name} -->\n")
    rows, end, _ = rest.partition("<!-- end -->")
    assert end
    assert rows.strip()
    for line in rows.strip().splitlines():
        assert line in table


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_arms_of_a_study_differ_in_their_accuracies_and_seeds_too(path):
    """A file that was copied from one run to another would not."""
    rows = read(path)["runs"]
    for figure in ("linear_top1", "knn_top1"):
        assert len({row[figure] for row in rows}) > 0.8 * len(rows)
    assert all(row["seconds"] > 0 and row["images"] > 0 for row in rows)
    assert statistics.mean(row["linear_top1"] for row in rows) > 10
