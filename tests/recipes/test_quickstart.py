"""make quickstart, whose closing table compares plain MoCo, MixCo and random initialisation."""

import dataclasses
import importlib
import json
import re
import shlex
from pathlib import Path

from tests.run_recipe import RECIPES, tiny_run

MAKEFILE = (Path(__file__).parents[2] / "Makefile").read_text()


def test_the_quickstart_trains_plain_and_mixco_and_measures_both_once_beside_random(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    (folder,) = re.findall(r"^QUICKSTART := (.+)$", MAKEFILE, flags=re.MULTILINE)
    (block,) = re.findall(r"^quickstart: .*\n((?:\t.*\n)+)", MAKEFILE, flags=re.MULTILINE)
    commands = [
        shlex.split(line.replace("$(QUICKSTART)", folder))[1:] for line in block.splitlines()
    ]
    for script, *options in commands:
        module = importlib.import_module(Path(script).stem)
        config = {"moco": "MoCoConfig", "evaluate": "EvaluateConfig"}[module.__name__]
        known = {field.name for field in dataclasses.fields(getattr(module, config))}
        assert {word[2:] for word in options if word.startswith("--")} <= known
    plain, mixco, table = (" ".join(command) for command in commands)
    assert plain == mixco.replace("moco.py", "moco.py --mix_weight 0").replace("/mixco", "/plain")
    assert "--protocol none" in plain  # measured once, at the end
    assert f"--output_dir {folder}/mixco " in mixco
    assert f"--backbone_dir {folder}/plain {folder}/mixco --random_init" in table


def test_evaluate_measures_the_initialisation_that_several_runs_share_once(
    image_folder, tmp_path, run_here, evaluate
):
    for name, options in {
        "plain": ["--mix_weight", 0],
        "mixco": [],
        "other": ["--seed", 1],
    }.items():
        common = ["--memory_bank_size", 8, "--protocol", "knn", "--precision", "32-true"]
        options = [*options, *common, "--output_dir", tmp_path / name]
        code, _, error = run_here("moco", *tiny_run(image_folder, "--epochs", 1, *options))
        assert code == 0, error

    def measure(*names):
        quiet = ["--protocol", "knn", "--knn_k", 5, "--num_workers", 0, "--random_init"]
        folders = [tmp_path / name for name in names]
        code, _, error = evaluate(
            *("--backbone_dir", *folders, *quiet, "--output_dir", tmp_path / "-".join(names))
        )
        assert code == 0, error
        report = json.loads((tmp_path / "-".join(names) / "evaluation.json").read_text())
        return {record["backbone"]: record["top1"] for record in report["results"]}

    def summary(name):
        return json.loads((tmp_path / name / "summary.json").read_text())

    both = measure("plain", "mixco")
    assert both == {
        str(tmp_path / "plain"): summary("plain")["knn_top1"],
        str(tmp_path / "mixco"): summary("mixco")["knn_top1"],
        "random initialisation": summary("mixco")["random_init_knn_top1"],
    }
    different = measure("mixco", "other")
    for name in ("mixco", "other"):
        expected = summary(name)["random_init_knn_top1"]
        assert different[f"random initialisation of {tmp_path / name}"] == expected
    code, _, error = evaluate("--backbone", "test_resnet", "--random_init")
    assert code == 1
    assert "--random_init goes with --backbone_dir" in error
