"""Runs recipes as their users do, in a process of their own."""

import subprocess
import sys
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"
TINY = ["--backbone", "test_resnet", "--num_workers", "0", "--knn_k", "5"]


def command(recipe, *options):
    return [sys.executable, str(RECIPES / f"{recipe}.py"), *map(str, options)]


def run(recipe, *options, cwd):
    """Runs a recipe as a program of its own."""
    result = subprocess.run(
        command(recipe, *options),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def tiny_run(folder, *options):
    return [
        *TINY,
        *("--dataset", "imagefolder", "--data_dir", folder, "--image_size", 16),
        *("--epochs", 2, "--batch_size", 10),
        *options,
    ]
