"""Checkpoints that a run keeps, and the mutual information of a SelfCon run's exits over them."""

import csv
import importlib
import itertools
import json
import math
import shutil
import statistics

import pytest
import torch

from mixco_lightly import MultiExitBackbone, estimate_mutual_information
from mixco_lightly.data.catalogue import create_dataset, get_dataset
from mixco_lightly.data.transforms import create_test_transform
from tests.run_recipe import TINY, run, tiny_run

STEPS = 20
TRAIN, TEST = 300, 100  # enough for an estimate; to read all digits takes longer than to measure
QUICK = ["--protocol", "torch", "--random_init=false", "--knn_every_n_epochs", 0]
ASKED = ["--protocol", "mutual-information", "--information_steps", STEPS, "--num_workers", 0]


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """An imagefolder of the first digits."""
    folder = tmp_path_factory.mktemp("digits")
    for split, count in [("train", TRAIN), ("test", TEST)]:
        digits = create_dataset("digits", "data", train=split == "train")
        for index in range(count):
            image, digit = digits[index]
            path = folder / split / str(digit) / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return folder


@pytest.fixture(scope="module")
def trained(few_digits, tmp_path_factory):
    """A SelfCon run on digits with two sub-networks and three checkpoints: 2, 4 and the last, 5."""
    folder = tmp_path_factory.mktemp("selfcon")
    options = ["--exits", 1, 2, "--epochs", 5, "--batch_size", 64, "--keep_every_n_epochs", 2]
    options += ["--dataset", "imagefolder", "--data_dir", few_digits, "--image_size", 32]
    part = ["--stem", "timm", "--train_fraction", 0.5]
    run("selfcon", *TINY, *options, *part, *QUICK, "--output_dir", "run", cwd=folder)
    return folder / "run"


@pytest.fixture(scope="module")
def measured(trained):
    """The same run after its evaluation."""
    run("evaluate", "--backbone_dir", trained, *ASKED, cwd=trained.parent)
    return trained


def report_of(folder):
    report = json.loads((folder / "mutual_information.json").read_text())
    assert report["format"] == "mixco-lightly mutual information 1"
    return report


def features_of(checkpoint, folder):
    """Features of all exits (N, E, D) of training images, by a network with these weights."""
    network = MultiExitBackbone("test_resnet", 32, (1, 2), "fc", "timm")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict(
        {
            name.removeprefix("network."): tensor
            for name, tensor in state.items()
            if name.startswith("network.")
        }
    )
    images = create_dataset("imagefolder", folder, train=True)
    images.transform = create_test_transform(get_dataset("imagefolder").facts, 32)
    with torch.no_grad():
        return torch.stack(network.eval()(torch.stack([image for image, _ in images])), dim=1)


def test_a_checkpoint_is_kept_after_every_so_many_epochs_beside_the_last(trained):
    folder = trained / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {
        *("epoch-0002.ckpt", "epoch-0004.ckpt", "last.ckpt")
    }
    states = {}
    for name, epochs in [("epoch-0002", 2), ("epoch-0004", 4), ("last", 5)]:
        content = torch.load(folder / f"{name}.ckpt", weights_only=True)
        assert content["epoch"] + 1 == epochs
        assert content["global_step"] == epochs * (TRAIN // 2 // 64)  # half of the images
        states[epochs] = content["state_dict"]["network.subnetworks.0.2.weight"]
    assert not torch.equal(states[2], states[4])
    assert not torch.equal(states[4], states[5])


def test_every_checkpoint_and_exit_has_all_estimates_and_accuracies(measured):
    rows = report_of(measured)["checkpoints"]
    assert [row["epochs"] for row in rows] == [2, 4, 5]
    assert len({row["weights_sha256"] for row in rows}) == 3
    with (measured / "metrics.csv").open(newline="") as file:
        logged = [row for row in csv.DictReader(file) if row["loss"]]
    for row in rows:
        assert [(figures["stage"], figures["estimator"]) for figures in row["information"]] == [
            (stage, name) for stage in (1, 2) for name in ("infonce", "nwj", "mine")
        ]
        for figures in row["information"]:
            if figures["estimator"] == "infonce":
                assert 0 < figures["nats"] < figures["upper_limit"]
                assert figures["upper_limit"] == pytest.approx(math.log(TRAIN // 5), abs=0.01)
            else:
                assert figures["upper_limit"] is None
        assert set(row["top1"]) == {"stage 1", "stage 2", "backbone", "ensemble"}
        losses = [float(x["loss"]) for x in logged if int(x["epoch"]) == row["epochs"] - 1]
        assert row["loss"] == pytest.approx(statistics.fmean(losses))
    # What the run itself measured at its end.
    summary, top1 = json.loads((measured / "summary.json").read_text()), rows[-1]["top1"]
    assert top1["backbone"] == pytest.approx(summary["linear_top1"])
    assert top1["stage 1"] == pytest.approx(summary["subnetwork_1_linear_top1"])
    assert top1["stage 2"] == pytest.approx(summary["subnetwork_2_linear_top1"])
    assert top1["ensemble"] == pytest.approx(summary["ensemble_linear_top1"])


def test_an_estimate_is_of_the_subnetworks_and_the_backbones_features_at_that_checkpoint(
    measured, few_digits
):
    rows = report_of(measured)["checkpoints"]
    names = {2: "epoch-0002", 4: "epoch-0004", 5: "last"}
    for row, index in [(rows[0], 0), (rows[1], 1), (rows[2], 1)]:
        features = features_of(
            measured / "checkpoints" / f"{names[row['epochs']]}.ckpt", few_digits
        )
        x, y = features[:, index], features[:, -1]
        own = row["information"][3 * index : 3 * index + 3]
        for figures in own:
            expected = estimate_mutual_information(x, y, figures["estimator"], steps=STEPS)
            assert figures["nats"] == pytest.approx(expected.nats, rel=1e-3, abs=1e-3)
            assert figures["train_nats"] == pytest.approx(expected.train_nats, rel=1e-3, abs=1e-3)
    # Those of another checkpoint would be noticed; a single figure may agree by chance.
    for first, second in itertools.combinations(rows, 2):
        differences = [
            abs(first["information"][index][name] - second["information"][index][name])
            for index in range(3, 6)
            for name in ("nats", "train_nats")
        ]
        assert max(differences) > 0.01


def test_the_table_has_a_line_for_each_checkpoint_and_exit_and_the_plot_is_an_image(measured):
    lines = (measured / "mutual_information.md").read_text().splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert table[0][:6] == [
        *("epochs", "loss", "exit after stage", "InfoNCE, nats", "NWJ, nats", "MINE, nats")
    ]
    assert [(line[0], line[2]) for line in table[2:]] == [
        (str(epochs), str(stage)) for epochs in (2, 4, 5) for stage in (1, 2)
    ]
    first = report_of(measured)["checkpoints"][0]
    assert float(table[2][3]) == pytest.approx(first["information"][0]["nats"], abs=0.006)
    assert float(table[2][6]) == pytest.approx(first["top1"]["stage 1"], abs=0.006)
    assert (measured / "mutual_information.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_measured_is_not_measured_again_and_other_settings_need_overwrite(
    measured, tmp_path, evaluate, monkeypatch
):
    folder = tmp_path / "run"
    shutil.copytree(measured, folder)
    # As if it had been stopped after the first checkpoint.
    report = report_of(folder)
    whole = report["checkpoints"]
    report["checkpoints"] = whole[:1]
    (folder / "mutual_information.json").write_text(json.dumps(report))
    loaded = []
    module = importlib.import_module("mixco_lightly.studies.exit_information")
    estimate = module.estimate_mutual_information
    monkeypatch.setattr(
        module, "estimate_mutual_information", lambda *a, **b: loaded.append(a) or estimate(*a, **b)
    )
    # The figure is drawn anew after each checkpoint.
    monkeypatch.setattr("mixco_lightly.studies.information_report.draw", lambda *_: None)
    code, printed, error = evaluate("--backbone_dir", folder, *ASKED)
    assert code == 0, error
    assert len(loaded) == 2 * 2 * 3
    assert "InfoNCE" in printed
    assert "\n\n" not in printed  # a hidden progress bar leaves no line
    for row, before in zip(report_of(folder)["checkpoints"], whole, strict=True):
        assert row["weights_sha256"] == before["weights_sha256"]
        for new, old in zip(row["information"], before["information"], strict=True):
            assert new["nats"] == pytest.approx(old["nats"], rel=1e-3, abs=1e-3)

    before = (folder / "mutual_information.json").read_bytes()
    code, _, error = evaluate("--backbone_dir", folder, *ASKED, "--seed", 1)
    assert code == 1
    assert "seed 0, not 1: add --overwrite" in error.strip().splitlines()[-1]
    assert (folder / "mutual_information.json").read_bytes() == before

    # Other weights under the same name.
    checkpoints = folder / "checkpoints"
    shutil.copy(checkpoints / "last.ckpt", checkpoints / "epoch-0002.ckpt")
    code, _, error = evaluate("--backbone_dir", folder, *ASKED)
    assert code == 1
    assert "other weights after 2 epochs: add --overwrite" in error


def break_checkpoint(folder):
    path = folder / "checkpoints" / "epoch-0004.ckpt"
    path.write_bytes(path.read_bytes()[:5000])


def forget_checkpoints(folder):
    for path in (folder / "checkpoints").glob("epoch-*"):
        path.unlink()


def take_others_checkpoint(folder):
    path = folder / "checkpoints" / "epoch-0004.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"].pop("network.subnetworks.0.2.weight")
    importlib.import_module("mixco_lightly.training.run_folder").CheckpointFiles(
        {}
    ).save_checkpoint(content, path)


def forget_exits(folder):
    path = folder / "backbone.json"
    config = json.loads(path.read_text())
    config["training"] |= {"exits": [], "method": "supcon"}
    config["format"] = "mixco-lightly backbone 1"  # which has no checksum
    (folder / "model.safetensors").rename(folder / "backbone.safetensors")
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "options", "named"),
    [
        (forget_checkpoints, [], "checkpoints has no checkpoints of several epochs: train the run"),
        (forget_exits, [], "run has none (method supcon)"),
        (break_checkpoint, [], "epoch-0004.ckpt is damaged"),
        (take_others_checkpoint, [], "epoch-0004.ckpt is not of the run"),
        (None, ["--dataset", "digits", "cifar10"], "cifar10"),
    ],
)
def test_what_cannot_be_measured_ends_with_one_line_that_names_it(
    change, options, named, trained, tmp_path, evaluate
):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("mutual_information.*"))
    if change:
        change(folder)
    code, _, error = evaluate("--backbone_dir", folder, *ASKED, *options)
    assert code == 1
    assert "Traceback" not in error
    assert named in error.strip().splitlines()[-1]


def test_a_backbone_without_a_run_has_no_checkpoints_to_measure(evaluate):
    code, _, error = evaluate("--backbone", "test_resnet", *ASKED)
    assert code == 1
    assert "give --backbone_dir, not --backbone" in error.strip().splitlines()[-1]


def test_overwriting_a_run_removes_the_checkpoints_it_had_kept(image_folder, tmp_path, run_here):
    folder = tmp_path / "run"
    options = [*tiny_run(image_folder, "--epochs", 1), "--output_dir", folder]
    assert run_here("simclr", *options, *QUICK, "--keep_every_n_epochs", 1)[0] == 0
    assert (folder / "checkpoints" / "epoch-0001.ckpt").is_file()
    assert run_here("simclr", *options, *QUICK, "--overwrite")[0] == 0
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
