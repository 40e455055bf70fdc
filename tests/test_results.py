"""The committed studies: their tables follow from their runs, and the README's rows from them."""

import json
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
NAME = "some-study"
PRESET = {
    "question": "Does it?",
    "base": {"dataset": "digits", "mix_weight": 0},
    "changes": {"MixCo": {"mix_weight": 1}},
    "seeds": [0, 1],
}


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import compare

    return compare


def check_study(compare, folder, preset, readme):
    """Fails unless preset, runs, table and the README's rows of a study say the same."""
    results = json.loads((folder / "results.json").read_text())
    table = (folder / "results.md").read_text()
    assert table == compare.render(results), "the table does not follow from the runs"

    preset = {name: value for name, value in preset.items() if name != "output_dir"}
    planned = {
        (run.group, run.arm, run.options["seed"]): {
            name: value for name, value in run.options.items() if name != "data_dir"
        }
        for run in compare.plan(compare.CompareConfig(**preset), folder)
    }
    rows = results["runs"]
    measured = {(row["group"], row["arm"], row["seed"]): row["options"] for row in rows}
    assert len(rows) == len(measured), "a run is there twice"
    assert measured == planned, "the runs are not those of the preset"

    _, _, rest = readme.partition(f"<!-- {folder.name} -->\n")
    shown, end, _ = rest.partition("<!-- end -->")
    assert end, "the README does not show the study"
    assert shown.strip(), "the README shows no row of the study"
    assert all(line in table for line in shown.strip().splitlines()), "the README differs"


@pytest.fixture
def some_study(compare, tmp_path):
    """The folder and README of a study that is as it should be."""
    folder = tmp_path / NAME
    folder.mkdir()
    config = compare.CompareConfig(**PRESET)
    runs = [
        {
            **{"group": run.group, "arm": run.arm, "seed": run.options["seed"]},
            "options": {name: x for name, x in run.options.items() if name != "data_dir"},
            **{"linear_top1": 50.0 + index, "images": 1000, "seconds": 10.0, "curve": []},
        }
        for index, run in enumerate(compare.plan(config, folder))
    ]
    results = {
        **{"question": config.question, "base_name": "plain", "jobs": 1, "processors": 2},
        **{"study": {}, "runs": runs},
    }
    (folder / "results.json").write_text(json.dumps(results))
    table = compare.render(results)
    (folder / "results.md").write_text(table)
    row = next(line for line in table.splitlines() if line.startswith("| MixCo"))
    return folder, f"<!-- {NAME} -->\n{row}\n<!-- end -->\n"


def test_a_study_that_is_as_it_should_be_passes(compare, some_study):
    check_study(compare, some_study[0], PRESET, some_study[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("figure", "does not follow"),
        ("missing run", "not those of the preset"),
        ("run twice", "twice"),
        ("other preset", "not those of the preset"),
        ("readme", "README differs"),
        ("no readme", "does not show"),
    ],
)
def test_a_study_that_was_changed_by_hand_is_found(compare, some_study, change, message):
    (folder, readme), preset = some_study, PRESET
    results = json.loads((folder / "results.json").read_text())
    if change == "figure":
        results["runs"][0]["linear_top1"] += 1
    elif change == "missing run":
        del results["runs"][0]
    elif change == "run twice":
        results["runs"].append(results["runs"][0])
    elif change == "other preset":
        preset = {**PRESET, "base": {**PRESET["base"], "epochs": 3}}
    elif change == "readme":
        readme = readme.replace("| MixCo | 2 | 5", "| MixCo | 2 | 6")
        assert readme != some_study[1]
    else:
        readme = ""
    (folder / "results.json").write_text(json.dumps(results))
    if change in ("missing run", "run twice"):
        (folder / "results.md").write_text(compare.render(results))
    with pytest.raises(AssertionError, match=message):
        check_study(compare, folder, preset, readme)


def test_the_committed_studies_are_as_they_should_be(compare):
    readme = (ROOT / "README.md").read_text()
    studies = sorted((ROOT / "recipes" / "results").glob("*/results.json"))
    assert studies
    for path in studies:
        preset = ROOT / "recipes" / "presets" / f"{path.parent.name}.yaml"
        check_study(compare, path.parent, yaml.safe_load(preset.read_text()), readme)
