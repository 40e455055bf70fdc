"""compare.py: what it runs, what it computes, and what it does after an interruption."""

import importlib
import json
import math
import os
import re
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mixco_lightly.evaluation.records import FORMAT
from mixco_lightly.files import replace_file
from mixco_lightly.studies import execute, report
from mixco_lightly.studies.plan import plan_runs
from mixco_lightly.studies.results import collect, is_finished
from mixco_lightly.studies.statistics import paired_difference
from tests.run_recipe import RECIPES, ForkedProcess


@pytest.fixture
def compare(monkeypatch):
    """The command compare.py, as a module."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("compare")


@pytest.fixture
def without_curves(monkeypatch):
    """Draws no curves, which a study does anew after each of its runs."""
    monkeypatch.setattr(report, "draw", lambda results, file: None)


BASE = {"dataset": "digits", "epochs": 1, "mix_weight": 0}


def study(compare, tmp_path, **options):
    defaults = {
        "base": BASE,
        "changes": {"MixCo": {"mix_weight": 1}},
        "seeds": [0, 1, 2],
        "output_dir": str(tmp_path / "study"),
    }
    config = compare.CompareConfig(**{**defaults, **options})
    return config, Path(config.output_dir)


def plan(compare, config, folder):
    return plan_runs(config, folder, *compare.find_config_classes())


def summary_of(top1, seconds=10.0):
    return {
        "linear_top1": top1,
        "knn_top1": top1 - 10,
        "images_per_second": 100.0,
        "seconds": seconds,
        "epochs": 2,
    }


def finish(run, top1):
    """Leaves behind what a finished run does."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "config.yaml").write_text(yaml.safe_dump(run.options))
    (run.folder / "backbone.json").write_text(json.dumps({"training": {"augment": "device"}}))
    (run.folder / "metrics.csv").write_text(
        "epoch,step,loss,knn_top1\n0,9,3.5,\n0,10,,20.0\n1,19,3.0,\n1,20,,30.0\n"
    )
    # Whole or not at all, as a run writes it: other threads of a study read it at any moment.
    with replace_file(run.folder / "summary.json") as file:
        file.write(json.dumps(summary_of(top1)).encode())


def test_a_plan_has_every_group_arm_and_seed_once_and_the_change_wins_over_group_and_base(
    compare, tmp_path
):
    config, folder = study(
        compare,
        tmp_path,
        groups={"long": {"epochs": 9}, "SimCLR": {"recipe": "simclr", "temperature": 0.5}},
        changes={"MixCo": {"mix_weight": 1}, "short MixCo": {"mix_weight": 1, "epochs": 2}},
    )
    runs = plan(compare, config, folder)
    assert len({run.folder for run in runs}) == len(runs) == 2 * 3 * 3
    # Seed by seed: an interrupted study has whole comparisons.
    assert [run.options["seed"] for run in runs] == [0] * 6 + [1] * 6 + [2] * 6
    found = {(run.group, run.arm): run for run in runs if run.options["seed"] == 1}
    assert found["long", "plain"].options["epochs"] == 9
    assert found["long", "short MixCo"].options["epochs"] == 2
    assert found["SimCLR", "MixCo"].recipe == "simclr"
    assert "recipe" not in found["SimCLR", "MixCo"].options
    assert found["SimCLR", "MixCo"].folder == folder / "simclr" / "mixco" / "seed-1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": {}}, "needs a base"),
        ({"changes": {}}, "at least one change"),
        ({"changes": {"plain": {}}}, "'plain'"),
        ({"changes": {"a": {"epoch": 3}}}, "epoch"),
        ({"changes": {"a": {"epochs": "many"}}}, "epochs"),
        ({"transfer": {"a": {"nothing": 1}}}, "nothing"),
        ({"changes": {"a": {"recipe": "byol"}}}, "'byol'"),
        ({"changes": {"a": {"output_dir": "/tmp"}}}, "output_dir"),
        ({"changes": {"a b": {}, "a-b": {}}}, "no folder"),
        ({"seeds": [1, 1]}, "seed is named twice"),
        ({"figures": ["linear"]}, "'linear': choose from linear_top1, "),
        ({"published": {"knn": {"source": "a"}}}, "published, knn: there is no such figure"),
        ({"equal_compute": {"MixCo": "MoCo"}}, "equal_compute: there is no arm 'MoCo': choose"),
        ({"equal_compute": {"MoCo": "plain"}}, "equal_compute: there is no arm 'MoCo': choose"),
        ({"equal_compute": {"MixCo": "MixCo"}}, "equal_compute: 'MixCo' is compared with itself"),
    ],
)
def test_a_study_that_cannot_run_is_refused_before_anything_runs(
    compare, tmp_path, options, message
):
    config, folder = study(compare, tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        plan(compare, config, folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"base": {"mix_wieght": 0}},
            "base: moco.py has no option mix_wieght (did you mean mix_weight?)",
        ),
        (
            {"groups": {"long": {"epoch": 9}}},
            "group 'long': moco.py has no option epoch (did you mean epochs?)",
        ),
        (
            {"changes": {"MixCo": {"temprature": 1}, "other": {}}},
            "change 'MixCo': moco.py has no option temprature (did you mean temperature?)",
        ),
        (
            {"groups": {"S": {"recipe": "simclr"}}, "base": {**BASE, "momentum": 0.9}},
            "base: simclr.py has no option momentum",
        ),
        (
            {"transfer": {"A": {"label_fraction": [1]}}},
            "transfer to A: evaluate.py has no option label_fraction (did you mean "
            "label_fractions?)",
        ),
    ],
)
def test_an_unknown_option_is_named_with_its_place_in_the_file_and_its_closest_neighbour(
    compare, tmp_path, options, message
):
    config, folder = study(compare, tmp_path, **options)
    with pytest.raises(ValueError, match=re.escape(message)):
        plan(compare, config, folder)


def test_null_leaves_out_an_option_that_the_recipe_of_a_change_does_not_have(compare, tmp_path):
    changes = {"i-Mix": {"recipe": "imix", "mix_weight": None}, "MixCo": {"mix_weight": 1}}
    config, folder = study(compare, tmp_path, changes=changes, seeds=[0])
    options = {run.arm: run.options for run in plan(compare, config, folder)}
    assert "mix_weight" not in options["i-Mix"]
    assert [options[arm]["mix_weight"] for arm in ("plain", "MixCo")] == [0, 1]
    # Only that option, only there, and only if the base has it.
    for wrong, message in [
        ({"i-Mix": {"recipe": "imix"}}, "base: imix.py has no option mix_weight"),
        ({**changes, "other": {"recipe": "imix"}}, "base: imix.py has no option mix_weight"),
        ({"i-Mix": {"recipe": "imix", "mix_weight": None, "mix_wieght": None}}, "mix_wieght"),
        ({"MixCo": {"mix_weight": None}}, "mix_weight"),
    ]:
        config, folder = study(compare, tmp_path, changes=wrong)
        with pytest.raises(ValueError, match=message):
            plan(compare, config, folder)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"base": {"epochs": "many"}}, "base: .*epochs"),
        ({"base": {"data_dir": 3}}, "base: .*data_dir"),
        ({"groups": {"long": {"epochs": [3]}}}, "group 'long': .*epochs"),
        ({"changes": {"MixCo": {"stem": "big"}}}, "change 'MixCo': .*stem"),
        ({"changes": {"MixCo": {"recipe": ["moco"]}}}, "MixCo: there is no recipe"),
        ({"groups": {"a": {"transfer": [["A"]]}}}, "a plain: transfer"),
        ({"transfer": {"A": {"data_dir": 3}}}, "transfer to A: data_dir must be a text, got 3"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_its_place_in_the_file(
    compare, tmp_path, options, place
):
    config, folder = study(compare, tmp_path, **options)
    with pytest.raises(ValueError, match=place):
        plan(compare, config, folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: 2", "seeds must be a list of whole numbers, such as [0, 1, 2], got 2."),
        ("seeds: [0, 1.5]", "seeds must be a list of whole numbers"),
        ("figures: linear_top1", "figures must be a list of names"),
        ("base: [dataset]", "base must be a mapping of names, got ['dataset']"),
        ("changes: {MixCo: 1}", "changes, MixCo must be a mapping of names, got 1."),
        ("groups: long", "groups must be a mapping of names, got 'long'."),
        ("transfer: {A: digits}", "transfer, A must be a mapping of names, got 'digits'."),
        ("published: [70]", "published must be a mapping of names, got [70]."),
        ("equal_compute: {MixCo: 138}", "equal_compute must be a name for each arm, got {'MixCo'"),
    ],
)
@pytest.mark.parametrize("option", ["--config {}", "--config={}"])
def test_a_list_or_mapping_of_a_study_that_is_none_is_one_line(
    compare, tmp_path, monkeypatch, text, message, option
):
    path = tmp_path / "study.yaml"
    path.write_text(f"base_name: none\n{text}\n")
    with pytest.raises(SystemExit) as stop:
        call(compare, monkeypatch, *option.format(path).split(" "))
    assert str(stop.value).startswith(f"error: {path}: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # mix_weight is 1 unless an option says otherwise.
        (
            {"base": {"dataset": "digits"}},
            "'plain' has mix_weight 1, so it trains with MixCo: set mix_weight: 0",
        ),
        (
            {"base": {"dataset": "digits"}, "base_name": "first"},
            "'MixCo' and 'first' have the same options, so they would be the same runs",
        ),
        (
            {
                "changes": {"a": {"mix_weight": 1}, "b": {"mix_weight": 1.0, "temperature": 0.2}},
                "groups": {"long": {"epochs": 9}},
            },
            "'b' and 'a' have the same options in group 'long'",
        ),
    ],
)
def test_a_study_that_compares_an_arm_with_itself_is_refused(compare, tmp_path, options, message):
    config, folder = study(compare, tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        plan(compare, config, folder)


def test_an_arm_may_be_the_same_in_two_groups_and_arms_may_differ_in_the_recipe_alone(
    compare, tmp_path
):
    groups = {"a": {"temperature": 0.1}, "b": {}}
    changes = {"MixCo": {"mix_weight": 1, "temperature": 0.3}, "SimCLR": {"recipe": "simclr"}}
    config, folder = study(compare, tmp_path, groups=groups, changes=changes)
    assert len(plan(compare, config, folder)) == 2 * 3 * 3


@pytest.mark.parametrize(("given", "threads"), [(None, "3"), ("1", "1")])
def test_a_run_has_the_users_threads_or_its_share_of_the_processors_it_may_use(
    given, threads, compare, tmp_path, monkeypatch
):
    seen = []

    class Failed:
        returncode = 1

        def __init__(self, command, env, **_):
            seen.append(env["OMP_NUM_THREADS"])

        def wait(self, timeout):
            pass

    monkeypatch.setattr(execute.subprocess, "Popen", Failed)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    config, folder = study(compare, tmp_path, seeds=[0], jobs=2)
    execute.run_all(config, plan(compare, config, folder), folder, config.jobs)
    assert seen == [threads, threads]


def test_a_run_has_at_least_one_thread(compare, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(execute, "run_one", lambda run, threads, log, part: seen.append(threads))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2), raising=False)
    config, folder = study(compare, tmp_path, seeds=[0], jobs=5)
    monkeypatch.setattr(execute, "_describe", lambda run: "")
    execute.run_all(config, plan(compare, config, folder), folder, config.jobs)
    assert seen == [1, 1]


@pytest.mark.parametrize("columns", [None, 40, 300])
def test_no_figure_of_the_table_is_cut_in_a_file_nor_on_a_narrow_terminal(
    columns, compare, tmp_path, monkeypatch, capsys, without_curves
):
    config, folder = study(compare, tmp_path, question="Does it help?")
    run_study(compare, config, folder, monkeypatch)
    if columns is not None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(columns))
    capsys.readouterr()
    call(compare, monkeypatch, "--output_dir", folder, "--report")
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "…" not in printed
    if columns == 40:
        # Each cell is folded into its column: put it together again.
        rows = [line.split("│")[1:-1] for line in printed.splitlines() if "│" in line]
        cells = ["".join(column) for column in zip(*rows, strict=True)]
        text = "".join("".join(cells).split())
        assert "54.00±1.00" in text
        assert "+3.00[+3.00,+3.00]" in text
    else:
        assert "54.00 ± 1.00 │ +3.00 [+3.00, +3.00]" in printed
        assert "kNN on held-out training images, %" in printed
    assert "Does it help?" in printed
    assert "Student's t interval" in printed


def test_names_of_groups_and_arms_cannot_leave_the_folder(compare, tmp_path):
    config, folder = study(
        compare, tmp_path, groups={"../../up": {}}, changes={"/etc/..": {"mix_weight": 1}}
    )
    for run in plan(compare, config, folder):
        assert folder.resolve() in run.folder.resolve().parents


def test_the_interval_is_students_of_the_differences_paired_by_seed(compare):
    rows = [
        {"group": "", "arm": arm, "seed": seed, "linear_top1": value}
        for arm, values in {"plain": [50, 60, 70], "MixCo": [52, 63, 77]}.items()
        # In another order than the base's: pairs go by seed.
        for seed, value in reversed(list(enumerate(values)))
    ]
    mean, deviation, half = paired_difference(rows, "linear_top1", "", ("plain", "MixCo"))
    assert mean == pytest.approx(4)  # 2, 3, 7
    assert deviation == pytest.approx(math.sqrt(7))
    assert half == pytest.approx(4.30265 * math.sqrt(7) / math.sqrt(3), rel=1e-5)


def test_a_seed_that_only_one_arm_has_is_no_pair(compare):
    rows = [
        {"group": "", "arm": arm, "seed": seed, "linear_top1": value}
        for arm, seed, value in [("plain", 0, 1), ("plain", 1, 5), ("MixCo", 1, 7)]
    ]
    mean, _, half = paired_difference(rows, "linear_top1", "", ("plain", "MixCo"))
    assert mean == 2
    assert math.isnan(half)
    assert paired_difference(rows, "linear_top1", "", ("plain", "other")) is None


def run_study(compare, config, folder, monkeypatch, stop_after=None):
    """Runs a study whose recipes are replaced by finish; gives the labels that ran."""
    ran = []

    def run_one(run, threads, log, part):
        if len(ran) == stop_after:
            raise KeyboardInterrupt
        ran.append(run.label)
        finish(run, 50 + 3 * (run.arm == "MixCo") + run.options["seed"])
        return ""

    monkeypatch.setattr(execute, "run_one", run_one)
    execute.run_all(config, plan(compare, config, folder), folder, config.jobs)
    return ran


def test_a_study_reports_what_its_runs_measured(compare, tmp_path, monkeypatch):
    config, folder = study(compare, tmp_path, question="Does it help?")
    run_study(compare, config, folder, monkeypatch)
    results = json.loads((folder / "results.json").read_text())
    assert len(results["runs"]) == results["planned"] == 6
    assert results["runs"][0]["curve"] == [[500, 20.0], [1000, 30.0]]
    table = (folder / "results.md").read_text()
    assert "## Does it help?" in table
    deviation = statistics.stdev([50, 51, 52])
    assert f"| plain | 3 | 51.00 ± {deviation:.2f} |  |" in table
    assert "| MixCo | 3 | 54.00 ± 1.00 | +3.00 [+3.00, +3.00] |" in table
    assert "| 1,000 | 10 |" in table
    assert (folder / "results.png").stat().st_size > 10_000
    assert not list(folder.glob(".results*"))
    # The table is a function of results.json alone.
    assert report.render(results) == table


def test_a_table_has_the_figures_that_the_study_names(
    compare, tmp_path, monkeypatch, without_curves
):
    config, folder = study(compare, tmp_path, figures=["held_out_knn_top1"])
    run_study(compare, config, folder, monkeypatch)
    table = (folder / "results.md").read_text()
    assert "kNN on held-out training images" in table
    assert "linear" not in table.partition("```")[0]


def test_an_arm_is_also_compared_with_the_one_that_costs_as_much(
    compare, tmp_path, monkeypatch, without_curves
):
    changes = {"plain, 138 epochs": {"epochs": 138}, "MixCo": {"mix_weight": 1}}
    equal_compute = {"MixCo": "plain, 138 epochs"}
    config, folder = study(compare, tmp_path, changes=changes, equal_compute=equal_compute)
    run_study(compare, config, folder, monkeypatch)
    results = json.loads((folder / "results.json").read_text())
    for row in results["runs"]:
        row["linear_top1"] += {"plain": 0, "plain, 138 epochs": 2, "MixCo": 0}[row["arm"]]
    head, rows = report.tabulate(results)
    first = head.index("minus plain [95%]")
    assert head[first + 1] == "at equal compute [95%]"
    assert [row[first : first + 2] for row in rows] == [
        ["", ""],
        ["+2.00 [+2.00, +2.00]", ""],
        ["+3.00 [+3.00, +3.00]", "+1.00 [+1.00, +1.00]"],
    ]
    assert " At equal compute: MixCo beside plain, 138 epochs." in report.render(results)


def test_a_figure_that_the_base_lacks_is_not_compared_with_it(
    compare, tmp_path, monkeypatch, without_curves
):
    config, folder = study(compare, tmp_path)
    run_study(compare, config, folder, monkeypatch)
    results = json.loads((folder / "results.json").read_text())
    for row in results["runs"]:
        if row["arm"] == "MixCo":
            row["ensemble_linear_top1"] = 60.0
    head, _, plain, mixco = report.render(results).splitlines()[:4]
    assert "ensemble linear, top-1 % | kNN on held-out" in head
    assert head.count("|") == plain.count("|") == mixco.count("|")
    assert "| 60.00 ± 0.00 | 30.00 ± 0.00 |" in mixco


def test_a_figure_of_the_base_alone_and_the_speed_have_a_column_and_no_difference(
    compare, tmp_path, monkeypatch, without_curves
):
    config, folder = study(
        compare, tmp_path, figures=["knn_top1", "random_init_knn_top1", "images_per_second"]
    )
    run_study(compare, config, folder, monkeypatch)
    results = json.loads((folder / "results.json").read_text())
    for row in results["runs"]:
        if row["arm"] == "plain":
            row["random_init_knn_top1"] = 12.0
            row["images_per_second"] = 250.0
    head, rows = report.tabulate(results)
    assert sum(heading.startswith("minus") for heading in head) == 1
    plain, mixco = (dict(zip(head, row, strict=True)) for row in rows)
    assert plain["random initialisation kNN, top-1 %"] == "12.00 ± 0.00"
    assert mixco["random initialisation kNN, top-1 %"] == ""
    assert (plain["images/s"], mixco["images/s"]) == ("250", "100")


def test_methods_without_sub_networks_are_compared_with_those_that_have_them(
    compare, tmp_path, run_here, image_folder
):
    base = {"dataset": "imagefolder", "data_dir": str(image_folder), "batch_size": 10}
    base |= {"epochs": 1, "backbone": "test_resnet", "image_size": 16, "knn_k": 5}
    base |= {"exits": [2], "protocol": ["knn"], "random_init": False, "objective": "supcon"}
    changes = {"SelfCon-S": {"objective": "selfcon-s"}}
    config, folder = study(compare, tmp_path, recipe="selfcon", base=base, changes=changes)
    for run in plan(compare, config, folder)[:2]:
        path = tmp_path / "options.yaml"
        path.write_text(yaml.safe_dump(run.options))
        code, _, error = run_here("selfcon", "--config", path, "--output_dir", run.folder)
        assert code == 0, error
        assert is_finished(run)


def test_what_goes_wrong_in_the_report_stops_the_study_at_once(compare, tmp_path, monkeypatch):
    config, folder = study(compare, tmp_path, seeds=[0])
    runs = 50 * plan(compare, config, folder)
    ran = []

    def run_one(run, threads, log, part):
        time.sleep(0.05)
        ran.append(run.label)
        return "no images"

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(execute, "run_one", run_one)
    monkeypatch.setattr(execute, "write_results", fail)
    with pytest.raises(OSError, match="disk full"):
        execute.run_all(config, runs, folder, config.jobs)
    assert len(ran) < 50  # of 100


def test_an_interrupted_study_goes_on_where_it_was(compare, tmp_path, monkeypatch, without_curves):
    config, folder = study(compare, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_study(compare, config, folder, monkeypatch, stop_after=4)
    assert len(json.loads((folder / "results.json").read_text())["runs"]) == 4
    ran = run_study(compare, config, folder, monkeypatch)
    assert ran == ["plain, seed 2", "MixCo, seed 2"]
    assert run_study(compare, config, folder, monkeypatch) == []
    assert len(json.loads((folder / "results.json").read_text())["runs"]) == 6


def write_study(tmp_path):
    path = tmp_path / "study.yaml"
    settings = {"base": BASE, "changes": {"MixCo": {"mix_weight": 1}}, "seeds": [0]}
    path.write_text(yaml.safe_dump(settings))
    return path


def test_an_interrupted_study_ends_with_one_line_that_says_how_to_go_on(
    compare, tmp_path, monkeypatch
):
    def run_one(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "run_one", run_one)
    options = ["--config", write_study(tmp_path), "--output_dir", tmp_path / "study"]
    with pytest.raises(SystemExit, match=r"^Stopped\. .* --resume\.$"):
        call(compare, monkeypatch, *options)


def test_a_study_in_the_background_is_the_one_that_was_asked_for(
    compare, tmp_path, monkeypatch, capsys
):
    class Process:
        pid = 123

        def __init__(self, command, *, start_new_session, **_):
            assert start_new_session
            started.append(command)

    started, studies = [], []
    monkeypatch.setattr(execute.subprocess, "Popen", Process)
    folder = tmp_path / "study"
    options = ["--config", write_study(tmp_path), "--output_dir", folder, "--jobs", 2]
    with pytest.raises(SystemExit) as stop:
        call(compare, monkeypatch, *options, "--background", "--question", "Does it: 1e-3?")
    assert not stop.value.code
    assert f"Process 123 goes on. Watch it with:\n  tail -f {folder}" in capsys.readouterr().out
    (command,) = started
    assert command[:2] == [sys.executable, str(RECIPES / "compare.py")]

    class Stop(Exception):
        pass

    def run_study(config, output_dir):
        studies.append(config)
        raise Stop

    monkeypatch.setattr(compare, "run_study", run_study)
    with pytest.raises(Stop):
        call(compare, monkeypatch, *command[2:])
    with pytest.raises(Stop):
        call(compare, monkeypatch, *options, "--question", "Does it: 1e-3?", "--resume")
    assert studies[0] == studies[1]


def test_a_run_of_another_study_is_refused_by_the_name_of_the_option(compare, tmp_path):
    config, folder = study(compare, tmp_path)
    runs = plan(compare, config, folder)
    finish(runs[0], 50)
    assert is_finished(runs[0])
    assert not is_finished(runs[1])
    config = replace(config, base={**BASE, "epochs": 2})
    with pytest.raises(ValueError, match="epochs 1, the study says 2"):
        is_finished(plan(compare, config, folder)[0])


def test_what_a_run_chose_for_auto_is_what_the_study_says(compare, tmp_path):
    config, folder = study(compare, tmp_path, base={**BASE, "precision": "auto"})
    run = plan(compare, config, folder)[0]
    finish(replace(run, options={**run.options, "precision": "bf16-mixed"}), 50)
    assert is_finished(run)


def test_a_run_without_all_of_its_transfers_is_not_finished(compare, tmp_path):
    transfer = {"Other data": {"dataset": "digits", "protocol": ["torch", "knn"]}}
    config, folder = study(compare, tmp_path, transfer=transfer)
    run = plan(compare, config, folder)[0]
    finish(run, 50)
    assert not is_finished(run)
    evaluation = run.transfer_folder("Other data")
    assert evaluation == run.folder / "transfer" / "other-data"
    facts = dict.fromkeys(["backbone", "dataset", "data_dir", "label_fraction", "seed"], "x")
    for protocols in (["torch"], ["torch", "knn"]):
        records = [{**facts, "protocol": name, "top1": 40.0} for name in protocols]
        evaluation.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT, "results": records})
        (evaluation / "evaluation.json").write_text(text)
        assert is_finished(run) == (len(protocols) == 2)
    assert collect([run])[0]["kNN on Other data, top-1 %"] == 40


def test_a_group_has_the_transfers_that_it_names(compare, tmp_path):
    transfer = {"A": {"dataset": "digits"}, "B": {"dataset": "digits"}}
    groups = {"a": {"transfer": ["B"]}, "none": {"transfer": []}, "all": {}}
    config, folder = study(compare, tmp_path, seeds=[0], transfer=transfer, groups=groups)
    names = {run.group: list(run.transfer) for run in plan(compare, config, folder)}
    assert names == {"a": ["B"], "none": [], "all": ["A", "B"]}
    for wrong in (["C"], "B"):
        config = replace(config, groups={"a": {"transfer": wrong}})
        with pytest.raises(ValueError, match=r"a plain: transfer .* must be names of"):
            plan(compare, config, folder)


def test_the_table_has_a_figure_that_only_a_later_group_has(compare):
    rows = [
        {"group": group, "arm": arm, "seed": 0, "images": 10, "seconds": 1, name: top1}
        for group, name in [("a", "linear on B, top-1 %"), ("b", "linear on A, top-1 %")]
        for arm, top1 in [("plain", 40.0), ("MixCo", 41.0)]
    ]
    facts = {"question": "", "base_name": "plain", "study": {}, "jobs": 1, "processors": 2}
    lines = report.render({**facts, "runs": rows}).splitlines()
    minus = "minus plain [95%]"
    figures = f"linear on B, top-1 % | {minus} | linear on A, top-1 % | {minus}"
    assert lines[0] == f"| group | arm | seeds | {figures} | images seen | seconds |"
    assert lines[3] == "| a | MixCo | 1 | 41.00 | +1.00 (one pair) |  |  | 10 | 1 |"
    assert lines[5] == "| b | MixCo | 1 |  |  | 41.00 | +1.00 (one pair) | 10 | 1 |"


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        ({"a": {"dataset": "digits", "k": 3}}, "transfer to a: .*k"),
        ({"a": {"protocol": ["mutual-information"]}}, "transfer to a: mutual-information is no"),
        ({"a": {"protocol": ["svm"]}}, "svm"),
        ({"a b": {}, "a-b": {}}, "no folder"),
    ],
)
def test_a_transfer_that_cannot_run_is_refused(compare, tmp_path, transfer, message):
    config, folder = study(compare, tmp_path, transfer=transfer)
    with pytest.raises(ValueError, match=message):
        plan(compare, config, folder)


def test_a_run_that_is_just_starting_does_not_disturb_the_report(compare, tmp_path):
    config, folder = study(compare, tmp_path)
    runs = plan(compare, config, folder)
    finish(runs[0], 50)
    runs[1].folder.mkdir(parents=True)
    (runs[1].folder / "config.yaml").touch()
    assert [row["arm"] for row in collect(runs)] == ["plain"]


def test_a_failed_run_is_named_and_the_others_still_run(
    compare, tmp_path, monkeypatch, without_curves
):
    config, folder = study(compare, tmp_path, seeds=[0])

    def run_one(run, threads, log, part):
        if run.arm == "plain":
            return "exit code 1: error: no images"
        finish(run, 50)
        return ""

    monkeypatch.setattr(execute, "run_one", run_one)
    failures = execute.run_all(config, plan(compare, config, folder), folder, config.jobs)
    assert failures == ["plain, seed 0: exit code 1: error: no images"]
    assert len(json.loads((folder / "results.json").read_text())["runs"]) == 1


def call(compare, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, options)])
    compare.main()


def test_a_whole_study_on_digits_by_the_command_of_the_help(compare, tmp_path, monkeypatch, capsys):
    # The recipes run as ever, but without their imports, which take longer than such runs.
    monkeypatch.setattr(execute.subprocess, "Popen", ForkedProcess)
    path = tmp_path / "digits.yaml"
    base = {**BASE, "backbone": "test_vit", "image_size": 16, "protocol": ["knn"]}
    base["precision"] = "32-true"  # on every processor
    base["report"] = False
    base["random_init"] = False  # it would be measured as often as the trained backbone
    settings = {"base": base, "changes": {"MixCo": {"mix_weight": 1}}, "seeds": [3]}
    settings["transfer"] = {"few digits": {"dataset": "digits", "protocol": ["knn"]}}
    settings["transfer"]["few digits"]["label_fractions"] = [0.5]
    path.write_text(yaml.safe_dump(settings))
    folder = tmp_path / "study"
    call(compare, monkeypatch, "--config", path, "--output_dir", folder)
    printed = capsys.readouterr().out
    assert "2/2  MixCo, seed 3: knn_top1" in printed
    assert f"\nReport: {folder / 'report.html'}\n" in printed
    assert (folder / "all" / "plain" / "seed-3" / "summary.json").is_file()
    rows = json.loads((folder / "results.json").read_text())["runs"]
    assert [row["arm"] for row in rows] == ["plain", "MixCo"]
    assert rows[0]["images"] == 1280  # whole batches of 128 out of 1,348
    assert rows[0]["knn_top1"] > 20  # chance is 10
    assert 20 < rows[0]["kNN on few digits, top-1 %"] != rows[0]["knn_top1"]
    assert "kNN on few digits, top-1 %" in (folder / "results.md").read_text()

    with pytest.raises(SystemExit, match="add --resume"):
        call(compare, monkeypatch, "--config", path, "--output_dir", folder)
    table = (folder / "results.md").read_text()
    (folder / "results.md").unlink()
    call(compare, monkeypatch, "--output_dir", folder, "--report")
    assert (folder / "results.md").read_text() == table
