"""Recipes on the GPU, as their users start them: to the end, killed and resumed, compiled."""

import csv
import json
import signal
import subprocess
import time

import pytest
import torch
import yaml

from mixco_lightly import load_backbone
from tests.run_recipe import command

EPOCHS = 12
# test_resnet on the digits, with one quick probe.
OPTIONS = ["--num_workers", "2", "--protocol", "torch", "--random_init", "false"]
OPTIONS += ["--accelerator", "gpu"]
TIME_LIMIT = 240


def run(recipe, *options, cwd):
    return subprocess.run(
        command(recipe, *options), cwd=cwd, capture_output=True, text=True, timeout=TIME_LIMIT
    )


def check(folder, epochs):
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["epochs"] == epochs
    assert summary["linear_top1"] > 80
    with (folder / "metrics.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert len(losses) >= epochs
    assert all(0 < loss < 100 for loss in losses)
    backbone = load_backbone(folder)
    with torch.no_grad():
        size = backbone.image_size
        assert backbone(torch.rand(2, 3, size, size)).isfinite().all()


@pytest.mark.parametrize("precision", ["auto", "16-mixed"])
@pytest.mark.parametrize("recipe", ["moco", "simclr"])
def test_a_recipe_that_was_killed_goes_on_to_its_end(recipe, precision, tmp_path):
    options = [*OPTIONS, "--epochs", EPOCHS, "--precision", precision, "--output_dir", "run"]
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        program = subprocess.Popen(
            command(recipe, *options), cwd=tmp_path, stdout=file, stderr=file
        )
        checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
        try:
            deadline = time.monotonic() + TIME_LIMIT
            while not checkpoint.exists():
                assert program.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.01)
        finally:
            program.kill()
            code = program.wait()
    assert code == -signal.SIGKILL, log.read_text()
    result = run(recipe, "--config", "run/config.yaml", "--resume", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    check(tmp_path / "run", EPOCHS)
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["precision"]
    assert recorded == precision or (precision == "auto" and recorded.endswith("-mixed"))


def test_selfcon_runs_to_its_end(tmp_path):
    options = [*OPTIONS, "--epochs", 3, "--output_dir", "run"]
    result = run("selfcon", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 3


def test_a_compiled_recipe_runs_to_its_end(tmp_path):
    options = [*OPTIONS, "--epochs", 2, "--compile", "true", "--output_dir", "run"]
    result = run("moco", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    check(tmp_path / "run", 2)
