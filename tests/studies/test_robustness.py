"""A study of calibration, robustness, few shots and outliers."""

import json
from dataclasses import fields

import yaml

from mixco_lightly.evaluation.records import FORMAT
from mixco_lightly.studies.commands import find_config_classes
from mixco_lightly.studies.minutes import list_evaluations
from mixco_lightly.studies.plan import Study, plan_runs
from mixco_lightly.studies.report import tabulate
from mixco_lightly.studies.results import _read_transfer
from mixco_lightly.training.recipe import load_recipe
from mixco_lightly.training.recipe_files import recipes_folder


def plan_preset(tmp_path):
    path = recipes_folder() / "presets" / "robustness-study.yaml"
    options = yaml.safe_load(path.read_text())
    known = {option.name for option in fields(Study)}
    study = Study(**{name: x for name, x in options.items() if name in known}, data_root="DATA")
    return study, plan_runs(study, tmp_path, *find_config_classes())


def test_the_preset_compares_plain_and_mixco_on_three_seeds_in_less_than_an_hour(tmp_path):
    study, runs = plan_preset(tmp_path)
    assert [(run.arm, run.options["seed"]) for run in runs] == [
        (arm, seed) for seed in (0, 1, 2) for arm in ("plain", "MixCo")
    ]
    # long-study.yaml: 1,600 epochs of the same images took 70 minutes on two cores.
    assert sum(run.options["epochs"] for run in runs) / 1600 * 70 + 2 * len(runs) < 60
    long = yaml.safe_load((recipes_folder() / "presets" / "long-study.yaml").read_text())
    own = {"epochs", "protocol"}
    assert {x: study.base[x] for x in study.base.keys() - own} == {
        x: long["base"][x] for x in long["base"].keys() - own
    }
    assert study.changes == long["changes"]
    (transfer,) = runs[0].transfer.values()
    assert transfer["ood_data_dir"] == "DATA/tiny-imagenet-200"
    config = load_recipe("moco").config_class(**runs[0].options)
    own, other = list_evaluations(runs[0], config)
    assert [name for name, _ in own.epochs] == ["torch", "knn", "few-shot", "corruptions"]
    assert other.second_datasets == (("ood", "tiny-imagenet", "DATA/tiny-imagenet-200"),)


def test_the_table_has_a_column_and_a_difference_for_each_measure(tmp_path):
    study, runs = plan_preset(tmp_path)
    facts = dict.fromkeys(["backbone", "dataset", "data_dir", "label_fraction", "seed"], "x")
    rows = []
    for index, run in enumerate(runs):
        folder = run.transfer_folder("CIFAR-10")
        folder.mkdir(parents=True)
        measures = {"AUROC": 60.0 + index, "FPR95": 90.0, "5-shot interval": 1.0}
        record = {**facts, "protocol": "ood", "measures": measures}
        text = json.dumps({"format": FORMAT, "results": [record]})
        (folder / "evaluation.json").write_text(text)
        figures = dict.fromkeys(study.figures, 50.0 + index)
        common = {"group": "", "arm": run.arm, "seed": run.options["seed"]}
        rows.append({**common, "images": 1, "seconds": 1, **figures, **_read_transfer(run)})
    results = {"runs": rows, "base_name": "plain", "study": study.content()}
    head, lines = tabulate(results)
    columns = [
        *("linear, top-1 %", "kNN, top-1 %", "linear, ECE %"),
        *("linear on corrupted images, top-1 %", "linear on corrupted images, ECE %"),
        *(f"class means, {shots}-shot %" for shots in (1, 5, 10)),
        *("outlier detection on CIFAR-10, AUROC %", "outlier detection on CIFAR-10, FPR95 %"),
    ]
    assert head[2:-2:2] == columns
    assert set(head[3:-2:2]) == {"minus plain [95%]"}
    mixco = dict(zip(columns, lines[1][3:-2:2], strict=True))
    assert mixco["linear, ECE %"] == "+1.00 [+1.00, +1.00]"
    assert mixco["outlier detection on CIFAR-10, AUROC %"] == "+1.00 [+1.00, +1.00]"
    # A study that names no figures has the accuracies only.
    head, _ = tabulate({**results, "study": {}})
    assert "linear, ECE %" not in head
