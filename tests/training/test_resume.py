"""A run that was killed goes on as if nothing had happened."""

import csv
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.run_recipe import RECIPES, Program, tiny_run

LAST = Path("checkpoints", "last.ckpt")
EPOCHS = 10
# What a run is compared by; summary.json has times in it.
WORKERS = ["--num_workers", 1, "--augment", "workers", "--keep_every_n_epochs", 5]
OPTIONS = {"moco": ["--memory_bank_size", 32, *WORKERS], "simclr": WORKERS}
# The evaluation after the training, which is most of the time, is not what is tested here.
WITHOUT_EVALUATION = """
import runpy, sys
import mixco_lightly.training.pretraining as pretrain
from mixco_lightly import export_backbone
def finish(run, started_as):
    export_backbone(run.model, run.folder, mean=(0, 0, 0), std=(1, 1, 1))
pretrain.measure_and_write = finish
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def start(recipe, *options, cwd):
    """Starts a recipe that ends with its training."""
    program = cwd / "without_evaluation.py"
    program.write_text(WITHOUT_EVALUATION)
    return Program(program, RECIPES / f"{recipe}.py", *options, cwd=cwd)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(part, whole):
    assert rows(part) == rows(whole)
    weights = [load_file(folder / "model.safetensors") for folder in (part, whole)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    names = [sorted(path.name for path in (run / LAST).parent.iterdir()) for run in (part, whole)]
    assert names[0] == names[1]
    for name in names[0]:
        states = [
            torch.load(folder / LAST.parent / name, map_location="cpu", weights_only=True)
            for folder in (part, whole)
        ]
        assert states[0]["global_step"] == states[1]["global_step"]
        states = [state["state_dict"] for state in states]
        assert states[0].keys() == states[1].keys()
        # The momentum encoder, heads and the queue with its position too.
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def kill_twice(recipe, options, seed, cwd):
    """Kills a run twice at moments that nothing but the seed decides, then lets it end."""
    moments = random.Random(seed)
    checkpoint = cwd / "part" / LAST
    checkpoint.unlink(missing_ok=True)  # of the trial before
    program = start(recipe, *options, "--output_dir", "part", "--overwrite", cwd=cwd)
    for _ in range(2):
        # A run that was killed before its first checkpoint has to begin anew: that is no resume.
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
            assert program.is_running(), program.wait().stderr
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.3))
        assert program.is_running(), "it ended before it was killed"
        program.kill()
        assert program.wait().returncode == -signal.SIGKILL
        program = start(recipe, "--config", "part/config.yaml", "--resume", cwd=cwd)
    result = program.wait()
    assert result.returncode == 0, result.stderr


def check_killed_runs(recipe, trials, image_folder, tmp_path):
    options = tiny_run(image_folder, "--epochs", EPOCHS, *OPTIONS[recipe])
    options += ["--knn_every_n_epochs", 2]
    result = start(recipe, *options, "--output_dir", "whole", cwd=tmp_path).wait()
    assert result.returncode == 0, result.stderr
    whole = rows(tmp_path / "whole")
    assert len([row for row in whole if row["loss"]]) == EPOCHS
    assert len([row for row in whole if row["knn_top1"]]) == EPOCHS // 2
    kept = sorted(path.name for path in (tmp_path / "whole" / LAST).parent.glob("epoch-*"))
    assert kept == ["epoch-0005.ckpt", "epoch-0010.ckpt"]
    for trial in range(trials):
        kill_twice(recipe, options, trial, tmp_path)
        assert_same_run(tmp_path / "part", tmp_path / "whole")


@pytest.mark.parametrize("recipe", ["moco", pytest.param("simclr", marks=pytest.mark.slow)])
def test_after_two_kills_every_logged_step_and_all_weights_are_those_of_the_uninterrupted_run(
    recipe, image_folder, tmp_path
):
    check_killed_runs(recipe, 1, image_folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["moco", "simclr"])
def test_twenty_runs_killed_twice_are_those_of_the_uninterrupted_run(
    recipe, image_folder, tmp_path
):
    check_killed_runs(recipe, 20, image_folder, tmp_path)


def test_a_run_killed_after_its_last_epoch_is_evaluated_when_it_is_resumed(
    image_folder, tmp_path, run_here, monkeypatch
):
    folder = tmp_path / "run"
    options = tiny_run(image_folder, "--memory_bank_size", 8, "--output_dir", folder)
    code, _, error = run_here("moco", *options, "--protocol", "knn", "--random_init=false")
    assert code == 0, error
    before = rows(folder)
    for name in ("summary.json", "model.safetensors", "curves.png"):
        (folder / name).unlink()
    code, _, error = run_here("moco", "--config", folder / "config.yaml", "--resume")
    assert code == 0, error
    assert (folder / "summary.json").is_file()
    assert (folder / "curves.png").is_file()
    assert rows(folder) == before


def test_all_options_that_changed_are_refused_and_named(image_folder, tmp_path, run_here):
    folder = tmp_path / "run"
    options = tiny_run(image_folder, "--epochs", 1, "--output_dir", folder)
    code, _, error = run_here("simclr", *options, "--precision", "auto")
    assert code == 0, error
    # What auto took is written down, so that another machine does not take something else.
    recorded = yaml.safe_load((folder / "config.yaml").read_text())
    assert "auto" not in (recorded["precision"], recorded["augment"])
    weights = (folder / "model.safetensors").read_bytes()
    resume = ["--config", folder / "config.yaml", "--resume"]
    changed = ["--seed", 3, "--alpha", 0.5, "--num_workers", 1, "--knn_k", 3]
    code, _, error = run_here("simclr", *resume, *changed)
    assert code == 1
    last = error.strip().splitlines()[-1]
    assert "was started with seed 0, not 3; alpha 1.0, not 0.5." in last
    # It says what a resumed run keeps, how to go on, and what may change.
    assert "A resumed run keeps its options" in last
    assert f"--config {folder / 'config.yaml'} --resume without the changed ones" in last
    for free in ("knn_k", "devices and num_nodes with the same product", "num_workers may"):
        assert free in last.partition("Only ")[2]
    assert (folder / "model.safetensors").read_bytes() == weights


def test_what_decides_no_result_may_change_on_resume_and_nothing_else(recipe_modules):
    from mixco_lightly.training.run_folder import find_changes

    before = {"devices": 4, "num_nodes": 1, "num_workers": 2, "augment": "device", "seed": 0}
    assert find_changes(before, before | {"num_workers": 0, "devices": 2, "num_nodes": 2}) == []
    assert find_changes(before, before | {"devices": 2}) == ["devices 4, not 2"]
    assert find_changes(before, before | {"seed": 1}) == ["seed 0, not 1"]
    # Workers that augment draw random numbers of their own.
    before["augment"] = "workers"
    assert find_changes(before, before | {"num_workers": 0}) == ["num_workers 2, not 0"]
    # A file that was edited is no traceback.
    assert find_changes(before | {"devices": None}, before) == ["devices None, not 4"]


def test_the_number_of_workers_changes_nothing_of_a_run_that_augments_on_the_device(
    image_folder, tmp_path, run_here
):
    for workers in (0, 2):
        options = tiny_run(image_folder, "--memory_bank_size", 8, "--augment", "device")
        options += ["--num_workers", workers, "--output_dir", tmp_path / str(workers)]
        code, _, error = run_here("moco", *options, "--protocol", "knn", "--random_init=false")
        assert code == 0, error
    assert_same_run(tmp_path / "2", tmp_path / "0")
    resume = ["--config", tmp_path / "0" / "config.yaml", "--resume", "--num_workers", 1]
    code, _, error = run_here("moco", *resume)
    assert code == 0, error


@pytest.mark.parametrize("missing", ["config.yaml", str(LAST)])
def test_a_run_without_its_checkpoint_or_options_is_an_error_and_no_fresh_start(
    missing, image_folder, tmp_path, run_here
):
    folder = tmp_path / "run"
    options = tiny_run(image_folder, "--output_dir", folder)
    (folder / LAST).parent.mkdir(parents=True)
    (folder / LAST).write_bytes(b"")
    (folder / "config.yaml").write_text("{}")
    (folder / missing).unlink()
    code, _, error = run_here("moco", *options, "--resume")
    assert code == 1
    assert f"{folder / missing} is missing" in error
    assert not (folder / "metrics.csv").exists()


# Writes checkpoints for ever.
WRITER = """
import sys
import torch
from mixco_lightly.training.run_folder import CheckpointFiles
files, count = CheckpointFiles(), 0
while True:
    x = torch.full((2_000_000,), count)
    files.save_checkpoint({"global_step": count, "x": x}, sys.argv[1])
    count += 1
"""


@pytest.fixture
def recipe_modules(monkeypatch):
    """Lets a test import the recipes' modules."""
    monkeypatch.syspath_prepend(str(RECIPES))


def check_kills_inside_the_write(kills, folder):
    from mixco_lightly.training.run_folder import read_steps, sweep

    writer = folder / "writer.py"
    writer.write_text(WRITER)
    checkpoint = folder / LAST
    checkpoint.parent.mkdir(parents=True)
    moments, inside = random.Random(0), 0
    for _ in range(kills):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        program = Program(writer, checkpoint, cwd=folder)
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
            assert program.is_running(), program.wait().stderr
        time.sleep(moments.uniform(0, 0.1))
        program.kill()
        inside += len(list(checkpoint.parent.iterdir())) > 1
        saved = torch.load(checkpoint, weights_only=True)
        assert read_steps(checkpoint) == saved["global_step"]
        assert (saved["x"] == saved["global_step"]).all()
        sweep(folder)
        assert list(checkpoint.parent.iterdir()) == [checkpoint]
    return inside


def test_a_kill_inside_the_write_leaves_a_whole_checkpoint_and_what_it_left_is_swept(
    tmp_path, recipe_modules
):
    # Nearly all of the time is inside the write; that all kills missed it would be a broken test.
    assert check_kills_inside_the_write(5, tmp_path) > 0


@pytest.mark.slow
def test_fifty_kills_inside_the_write_leave_a_whole_checkpoint(tmp_path, recipe_modules):
    assert check_kills_inside_the_write(50, tmp_path) > 10


def test_a_new_run_and_a_resumed_one_sweep_what_a_killed_write_left(tmp_path, recipe_modules):
    from mixco_lightly.training.run_folder import checkpoint_path, prepare_run

    options = {"seed": 1}
    prepare_run(tmp_path, options, resume=False, overwrite=False)
    checkpoint = checkpoint_path(tmp_path)
    for resume in (True, False):
        checkpoint.write_bytes(b"whole")
        left = [tmp_path / ".partial-a", checkpoint.parent / ".partial-b"]
        for path in left:
            path.write_bytes(b"torn")
        prepare_run(tmp_path, options, resume=resume, overwrite=True)
        assert not any(path.exists() for path in left)
        assert checkpoint.exists() == resume


def test_a_failed_write_keeps_the_checkpoint_and_removes_its_temporary_file(
    tmp_path, recipe_modules
):
    from mixco_lightly.training.run_folder import CheckpointFiles

    path = tmp_path / "last.ckpt"
    CheckpointFiles().save_checkpoint({"global_step": 7}, path)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        CheckpointFiles().save_checkpoint({"global_step": 8, "bad": (i for i in ())}, path)
    assert torch.load(path, weights_only=True)["global_step"] == 7
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_are_cut_at_the_checkpoint_and_a_torn_line_is_left_out(tmp_path, recipe_modules):
    from mixco_lightly.training.metrics import MetricsFile, read_metrics

    path = tmp_path / "metrics.csv"
    whole = MetricsFile(path)
    for step in (9, 19, 29):
        whole.log_metrics({"loss": step / 10, "epoch": 0}, step)
        if step == 19:
            whole.log_metrics({"knn_top1": 50.0, "epoch": 0}, step)
    expected = path.read_text()
    assert [row["loss"] for row in read_metrics(path)] == ["0.9", "1.9", "", "2.9"]

    # Killed after step 29, which the checkpoint does not have.
    MetricsFile(path).keep_steps(20)
    assert [row["step"] for row in read_metrics(path)] == ["9", "19", "19"]

    # Killed while it wrote step 29 again, as "2": not to be taken for step 2.
    path.write_text(expected[: expected.rindex("0,29")] + "0,2")
    resumed = MetricsFile(path)
    resumed.keep_steps(20)
    assert [row["step"] for row in read_metrics(path)] == ["9", "19", "19"]
    resumed.log_metrics({"loss": 2.9, "epoch": 0}, 29)
    assert path.read_text() == expected
