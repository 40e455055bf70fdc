"""Pretraining on images without labels, and --data_dir without --dataset."""

import csv
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from mixco_lightly.data.catalogue import DATASETS
from mixco_lightly.studies.plan import plan_runs
from tests.run_recipe import RECIPES, TINY

QUICK = [*TINY, "--image_size", 16, "--epochs", 1, "--batch_size", 10]
REASON = "has no labels (these are train/CLASS/*.jpg beside test/CLASS/*.jpg or val/CLASS/*.jpg)"
SKIPPED = "No kNN while training and no probes at the end: "


def make_images(root, *folders, count=20, sizes=(16,)):
    """Images of noise, one after another in each of the folders."""
    rng = np.random.default_rng(0)
    for index in range(count):
        folder = root / folders[index % len(folders)]
        folder.mkdir(parents=True, exist_ok=True)
        shape = (sizes[index % len(sizes)], 16, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{index}.jpg")
    return root


def assert_complete(run):
    """A run that trained and measured nothing has all files, and no accuracy."""
    for name in ("model.safetensors", "backbone.json", "curves.png", "metrics.csv"):
        assert (run / name).stat().st_size > 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["images_per_second"] > 0
    assert not [name for name in summary if "top" in name]
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["loss"]
    assert "knn_top1" not in rows[0]


def test_a_flat_folder_of_several_sizes_trains_resumes_and_is_evaluated_on_labelled_images(
    image_folder, tmp_path, run_here
):
    images = make_images(tmp_path / "flat", ".", sizes=(16, 20, 24))
    run = tmp_path / "run"
    options = ["--epochs", 2, "--memory_bank_size", 8, "--train_fraction", 0.55]
    options += ["--keep_every_n_epochs", 1, "--output_dir", run]
    code, printed, error = run_here("moco", *QUICK, "--data_dir", images, *options)
    assert code == 0, error
    assert f"Found images in {images}: --dataset imagefolder.\n" in printed
    assert "moco on imagefolder: 11 images of 16 pixels" in printed
    assert "augmented by workers" in printed
    assert printed.count(f"{SKIPPED}{images} {REASON}.") == 1
    assert_complete(run)
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert recorded["dataset"] == "imagefolder"
    assert recorded["protocol"] == ["torch", "sklearn", "knn"]

    # Resumed after the first epoch it ends with the same weights, and finds nothing out.
    weights = (run / "model.safetensors").read_bytes()
    shutil.copy(run / "checkpoints" / "epoch-0001.ckpt", run / "checkpoints" / "last.ckpt")
    (run / "model.safetensors").unlink()
    code, printed, error = run_here("moco", "--config", run / "config.yaml", "--resume")
    assert code == 0, error
    assert "Found" not in printed
    assert printed.count(SKIPPED) == 1
    assert (run / "model.safetensors").read_bytes() == weights

    quiet = ["--num_workers", 0, "--knn_k", 3, "--protocol", "knn"]
    evaluate = ["evaluate", "--backbone_dir", run, *quiet]
    labelled = ["--dataset", "imagefolder", "--data_dir", image_folder]
    code, _, error = run_here(*evaluate, *labelled)
    assert code == 0, error
    (record,) = json.loads((run / "evaluation.json").read_text())["results"]
    assert 0 <= record["top1"] <= 100
    code, _, error = run_here(*evaluate)
    assert code == 1
    assert error.startswith(f"error: The images in {images} have no labels: ")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("recipe", "folders", "options"),
    [
        ("simclr", ["2021/05", "2021/06", "2022"], []),
        ("simclr", ["train"], ["--max_broken_images", 1]),
        ("moco", ["train/cat", "train/dog"], ["--memory_bank_size", 8]),
        ("selfcon", ["."], ["--objective", "selfcon-su"]),
    ],
)
def test_folders_without_meaning_or_without_test_images_train(
    recipe, folders, options, tmp_path, run_here
):
    images = make_images(tmp_path / "images", *folders)
    if "--max_broken_images" in options:
        (images / "train" / "0.jpg").write_bytes(b"")
    run = tmp_path / "run"
    options = [*options, "--data_dir", images, "--output_dir", run]
    code, printed, error = run_here(recipe, *QUICK, *options)
    assert code == 0, error
    assert f"on imagefolder: {19 if '--max_broken_images' in options else 20} images" in printed
    assert "augmented by device" in printed
    assert printed.count(f"{SKIPPED}{images} {REASON}.") == 1
    assert_complete(run)


def test_protocol_none_and_an_empty_list_skip_knn_and_probes_with_one_line(
    image_folder, tmp_path, run_here
):
    run = tmp_path / "run"
    options = ["--data_dir", image_folder, "--memory_bank_size", 8, "--output_dir", run]
    code, printed, error = run_here("moco", *QUICK, *options, "--protocol", "none")
    assert code == 0, error
    assert printed.count(f"{SKIPPED}--protocol none.") == 1
    assert_complete(run)
    assert yaml.safe_load((run / "config.yaml").read_text())["protocol"] == []

    (run / "summary.json").unlink()
    code, printed, error = run_here("moco", "--config", run / "config.yaml", "--resume")
    assert code == 0, error
    assert printed.count(f"{SKIPPED}--protocol none.") == 1
    assert_complete(run)


def test_a_single_class_is_trained_on_and_nothing_is_measured(image_folder, tmp_path, run_here):
    for split in ("train", "test"):
        shutil.rmtree(image_folder / split / "blue")
    run = tmp_path / "run"
    data = ["--data_dir", image_folder]
    options = [*data, "--memory_bank_size", 8, "--output_dir", run]
    code, printed, error = run_here("moco", *QUICK, *options)
    assert code == 0, error
    assert printed.count(f"{SKIPPED}{image_folder} has a single class, red.") == 1
    assert_complete(run)
    code, _, error = run_here("evaluate", "--backbone", "test_resnet", "--image_size", 16, *data)
    assert code == 1
    assert error == f"error: {image_folder} has a single class, red: give two or more.\n"


@pytest.mark.parametrize(
    ("recipe", "options", "named"),
    [
        ("selfcon", ["--data_dir", "flat"], "selfcon-s trains with labels, and flat has no labels"),
        ("moco", ["--data_dir", "flat", "--output_dir", "flat/run"], "--output_dir flat/run"),
        ("moco", ["--data_dir", "flat", "--protocol", "none", "knn"], "--protocol none stands"),
        ("moco", ["--data_dir", "nowhere"], "in nowhere: nowhere does not exist. Give --dataset"),
        ("simclr", ["--data_dir", "both"], "cifar10 (cifar-10-batches-py), cifar100"),
        ("draw_mixtures", ["--data_dir", "both"], "cifar10 (cifar-10-batches-py), cifar100"),
        ("evaluate", ["--backbone", "test_resnet", "--data_dir", "flat"], "flat have no labels"),
        ("evaluate", ["--backbone", "test_resnet", "--data_dir", "both"], f"{', '.join(DATASETS)}"),
    ],
)
def test_data_that_cannot_be_used_is_one_line_and_leaves_no_run(
    recipe, options, named, tmp_path, monkeypatch, run_here
):
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "flat", ".", count=12)
    for name in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / "both" / name).mkdir(parents=True)
    quick = QUICK if recipe in ("moco", "simclr", "selfcon") else ["--image_size", 16]
    code, _, error = run_here(recipe, *quick, *options)
    assert code == 1
    assert len(error.splitlines()) == 1
    assert named in error
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "flat" / "run").exists()


def test_evaluate_and_draw_mixtures_find_the_dataset_in_the_folder(
    image_folder, tmp_path, run_here
):
    data = ["--data_dir", image_folder, "--image_size", 16]
    found = f"Found images in {image_folder}: --dataset imagefolder.\n"
    quiet = ["--num_workers", 0, "--protocol", "knn", "--output_dir", tmp_path]
    code, printed, error = run_here("evaluate", "--backbone", "test_resnet", *data, *quiet)
    assert code == 0, error
    assert found in printed
    (record,) = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    assert (record["dataset"], record["test_images"]) == ("imagefolder", 12)
    code, printed, error = run_here(
        "draw_mixtures", *data, "--pairs", 2, "--output", tmp_path / "mixtures.png"
    )
    assert code == 0, error
    assert printed.startswith(found)
    assert "2 mixtures of imagefolder are in" in printed


def test_a_dataset_that_is_named_is_not_looked_for_and_the_defaults_are_digits_and_data(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(RECIPES))
    from mixco_lightly.training.resolve import choose_dataset

    assert choose_dataset(None, None) == ("digits", "data")
    assert choose_dataset("cifar10", None) == ("cifar10", "data")
    assert choose_dataset("cifar10", str(tmp_path)) == ("cifar10", str(tmp_path))
    assert capsys.readouterr().out == ""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "cifar-100-python").mkdir(parents=True)
    assert choose_dataset(None, "data") == ("cifar100", "data")  # the default, but given
    assert capsys.readouterr().out == "Found cifar-100-python in data: --dataset cifar100.\n"


def test_a_study_without_a_dataset_is_of_the_digits(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from compare import CompareConfig, find_config_classes

    def folders(base):
        config = CompareConfig(
            base={"epochs": 1, "mix_weight": 0, **base},
            changes={"a": {"alpha": 2.0}},
            data_root="root",
        )
        runs = plan_runs(config, tmp_path, *find_config_classes())
        return {run.options.get("data_dir") for run in runs}

    assert folders({}) == {None}
    assert folders({"dataset": "cifar10"}) == {"root/data"}
    assert folders({"data_dir": "images"}) == {"root/images"}
