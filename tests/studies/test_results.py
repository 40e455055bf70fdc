"""The committed studies: tables follow from their runs, and the documents' rows from the tables."""

import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

from mixco_lightly.studies import forest, report
from mixco_lightly.studies.plan import plan_runs
from mixco_lightly.studies.statistics import paired_difference

ROOT = Path(__file__).parents[2]
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
    return importlib.import_module("compare")


def plan(compare, config, folder):
    return plan_runs(config, folder, *compare.find_config_classes())


def check_study(compare, folder, preset, documents):
    """Fails unless preset, runs, table and the documents' rows of a study say the same."""
    results = json.loads((folder / "results.json").read_text())
    table = (folder / "results.md").read_text()
    assert table == report.render(results), "the table does not follow from the runs"

    preset = {name: value for name, value in preset.items() if name != "output_dir"}
    planned = {
        (run.group, run.arm, run.options["seed"]): {
            name: value for name, value in run.options.items() if name != "data_dir"
        }
        for run in plan(compare, compare.CompareConfig(**preset), folder)
    }
    rows = results["runs"]
    measured = {(row["group"], row["arm"], row["seed"]): row["options"] for row in rows}
    assert len(rows) == len(measured), "a run is there twice"
    assert measured == planned, "the runs are not those of the preset"

    shown = re.findall(rf"<!-- {folder.name} -->\n(.*?)<!-- end -->", documents, re.DOTALL)
    assert shown, "no document shows the study"
    for lines in (text.strip().splitlines() for text in shown):
        assert lines, "a document shows no row of the study"
        assert all(line in table for line in lines), "a document differs"


@pytest.fixture
def some_study(compare, tmp_path):
    """The folder and document of a study that is as it should be."""
    folder = tmp_path / NAME
    folder.mkdir()
    config = compare.CompareConfig(**PRESET)
    runs = [
        {
            **{"group": run.group, "arm": run.arm, "seed": run.options["seed"]},
            "options": {name: x for name, x in run.options.items() if name != "data_dir"},
            **{"linear_top1": 50.0 + index, "images": 1000, "seconds": 10.0, "curve": []},
        }
        for index, run in enumerate(plan(compare, config, folder))
    ]
    results = {
        **{"question": config.question, "base_name": "plain", "jobs": 1, "processors": 2},
        **{"study": {}, "runs": runs},
    }
    (folder / "results.json").write_text(json.dumps(results))
    table = report.render(results)
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
        ("document", "document differs"),
        ("no document", "no document shows"),
    ],
)
def test_a_study_that_was_changed_by_hand_is_found(compare, some_study, change, message):
    (folder, document), preset = some_study, PRESET
    results = json.loads((folder / "results.json").read_text())
    if change == "figure":
        results["runs"][0]["linear_top1"] += 1
    elif change == "missing run":
        del results["runs"][0]
    elif change == "run twice":
        results["runs"].append(results["runs"][0])
    elif change == "other preset":
        preset = {**PRESET, "base": {**PRESET["base"], "epochs": 3}}
    elif change == "document":
        document = document.replace("| MixCo | 2 | 5", "| MixCo | 2 | 6")
        assert document != some_study[1]
    else:
        document = ""
    (folder / "results.json").write_text(json.dumps(results))
    if change in ("missing run", "run twice"):
        (folder / "results.md").write_text(report.render(results))
    with pytest.raises(AssertionError, match=message):
        check_study(compare, folder, preset, document)


def map_row(results, setting, source):
    """The row of a study, "study: group; base", in the README's map."""
    study, _, place = source.partition(": ")
    group, _, base = place.partition("; ")
    pair = (base or "plain", "MixCo")
    runs = [run for run in results["runs"] if run["group"] == group]
    assert runs, f"{study} has no group {group!r}"
    cells = [setting]
    for arm in pair:
        cells.append(report.format_mean([x["linear_top1"] for x in runs if x["arm"] == arm]))
    for figure in ("linear_top1", "knn_top1"):
        difference = paired_difference(runs, figure, group, pair)
        cells.append(report.format_difference(difference))
    return f"| {' | '.join(cells)} | {source} |"


def test_the_map_in_the_readme_follows_from_the_studies():
    readme = (ROOT / "README.md").read_text()
    document = (ROOT / "docs" / "results.md").read_text()
    in_readme = re.search(r"<!-- map -->\n(.*?)<!-- end -->", readme, re.DOTALL)
    shown = re.search(r"<!-- map -->\n(.*?)<!-- end -->", document, re.DOTALL)
    assert in_readme
    assert shown
    head, line, *rows = shown.group(1).strip().splitlines()
    assert len(rows) == 18
    # The README's six rows are among those that follow from the runs.
    few = in_readme.group(1).strip().splitlines()
    assert few[:2] == [head, line]
    assert len(few) == 8
    assert set(few[2:]) <= set(rows)
    assert head.count("|") == line.count("|")
    for row in rows:
        setting, *_, source = (cell.strip() for cell in row.strip("|").split("|"))
        path = ROOT / "recipes" / "results" / source.partition(": ")[0] / "results.json"
        assert row == map_row(json.loads(path.read_text()), setting, source)


def test_the_pooled_rows_in_the_document_follow_from_the_studies():
    rows = forest.arrange(forest.read_settings(ROOT / "recipes" / "results"))
    _, lines = forest.tabulate(row for row in rows if row.pooled)
    document = (ROOT / "docs" / "results.md").read_text()
    (shown,) = re.findall(r"<!-- pooled -->\n(.*?)<!-- end -->", document, re.DOTALL)
    cells = [line.strip("| ").split(" | ") for line in shown.strip().splitlines()[2:]]
    assert [row[-2:] for row in cells] == [line[-2:] for line in lines]
    assert [re.findall(r"\d+ independent settings", row[0]) for row in cells] == [
        re.findall(r"\d+ independent settings", line[1]) for line in lines
    ]


def test_the_differences_at_equal_compute_follow_from_the_studies():
    page = (ROOT / "docs" / "mixing.md").read_text()
    (shown,) = re.findall(r"<!-- equal compute -->\n(.*?)<!-- end -->", page, re.DOTALL)
    rows = [line.strip("| ").split(" | ") for line in shown.strip().splitlines()[2:]]
    folders = [ROOT / "recipes" / "results" / f"family-{name}-study" for name in ("few", "usual")]
    studies = [report.read_results(folder) for folder in folders]
    assert {arm for arm, *_ in rows} == studies[0]["study"]["equal_compute"].keys()
    for arm, *cells in rows:
        assert cells == [
            report.format_difference(
                paired_difference(
                    study["runs"],
                    figure,
                    study["runs"][0]["group"],
                    (study["study"]["equal_compute"][arm], arm),
                )
            )
            for study in studies
            for figure in ("linear_top1", "knn_top1")
        ]


def test_the_committed_studies_are_as_they_should_be(compare):
    documents = "".join((ROOT / name).read_text() for name in ("README.md", "docs/results.md"))
    studies = sorted((ROOT / "recipes" / "results").glob("*/results.json"))
    assert studies
    for path in studies:
        preset = ROOT / "recipes" / "presets" / f"{path.parent.name}.yaml"
        check_study(compare, path.parent, yaml.safe_load(preset.read_text()), documents)


NOT_RUN = [
    path.stem
    for path in sorted((ROOT / "recipes" / "presets").glob("*-study.yaml"))
    if not (ROOT / "recipes" / "results" / path.stem).exists()
]


@pytest.mark.parametrize("name", NOT_RUN)
def test_a_study_that_has_not_run_yet_can_run(name, compare, tmp_path):
    preset = yaml.safe_load((ROOT / "recipes" / "presets" / f"{name}.yaml").read_text())
    config = compare.CompareConfig(**preset)
    runs = plan(compare, config, tmp_path)
    arms = len(config.seeds) * (len(config.groups) or 1) * (1 + len(config.changes))
    assert len({run.folder for run in runs}) == len(runs) == arms
    folder = name.removeprefix("paper-").removesuffix("-study")
    assert config.output_dir in (f"runs/{name}", f"runs/paper/{folder}")
    assert config.question
    if name.startswith("family"):
        assert {run.recipe for run in runs} == {"moco", "imix", "unmix"}


def test_a_study_that_chooses_has_its_own_seed_and_shows_held_out_training_images_only():
    presets = {
        path.stem: yaml.safe_load(path.read_text())
        for path in (ROOT / "recipes" / "presets").glob("*-study.yaml")
    }
    tuning = {name for name in presets if name.endswith("tuning-study") or "-choice-" in name}
    assert tuning
    for name, preset in presets.items():
        if name in tuning:
            assert preset["seeds"] == [9]
            assert preset["figures"] == ["held_out_knn_top1"]
        else:
            assert 9 not in preset["seeds"]


def test_the_queue_is_shorter_than_the_images_minus_a_batch_but_in_two_studies():
    images = {"cifar10-images": 50_000, "cifar10-10000": 10_000, "tiny-imagenet-200": 20_000}
    longer = set()
    for path in (ROOT / "recipes" / "presets").glob("*-study.yaml"):
        if path.stem.startswith("paper-"):
            continue  # the papers' settings, with all images
        preset = yaml.safe_load(path.read_text())
        for group in preset.get("groups", {"": {}}).values():
            options = {**preset["base"], **group}
            count = images[options["data_dir"]] * options.get("train_fraction", 1)
            if options.get("memory_bank_size", 0) > count - options.get("batch_size", 0):
                longer.add(path.stem)
    assert longer == {"budget-study", "queue-study"}
