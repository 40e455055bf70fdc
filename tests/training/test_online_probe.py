"""The linear classifier beside the training: what it learns from, and that it disturbs nothing."""

import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from mixco_lightly import Features
from mixco_lightly.training.metrics import read_metrics
from mixco_lightly.training.online_probe import OnlineProbe
from mixco_lightly.training.training_knn import choose_images
from tests.pretended_gpu import pretended_gpu
from tests.run_recipe import RECIPES, tiny_run
from tests.training.test_devices import RANKS, launch

LAST = Path("checkpoints", "last.ckpt")
PROBE = "OnlineProbe"
CLASSES, DIM, BATCH = 3, 5, 8


class Points(Dataset):
    """A cloud of points for each class; images of a batch are their own features."""

    def __init__(self, count=150):
        rng = np.random.default_rng(0)
        self.targets = (np.arange(count) % CLASSES).tolist()
        centres = 3 * rng.normal(size=(CLASSES, DIM))
        self.points = torch.tensor(centres[self.targets] + rng.normal(size=(count, DIM))).float()
        self.classes = [str(number) for number in range(CLASSES)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.points[index], self.targets[index]


def fit(images, labels, epochs=8, first_process=True, change=lambda points: points, rows=None):
    """Trains a probe on points in a run's order; ``labels`` are those that the batches have."""
    shown = Points()
    shown.targets = labels
    part = Subset(shown, list(range(10, len(shown))))  # as with --train_fraction
    sampler = DistributedSampler(part, num_replicas=2, rank=0, seed=5, drop_last=True)
    loader = DataLoader(part, batch_size=BATCH, sampler=sampler, drop_last=True)
    probe = OnlineProbe(images, seed=3)
    strategy = types.SimpleNamespace(root_device=torch.device("cpu"))
    trainer = types.SimpleNamespace(
        is_global_zero=first_process, strategy=strategy, train_dataloader=loader
    )
    module = types.SimpleNamespace(
        backbone=types.SimpleNamespace(feature_dim=DIM), step_features=None
    )
    probe.on_fit_start(trainer, module)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        probe.on_train_epoch_start(trainer, module)
        for index, (points, targets) in enumerate(loader):
            module.step_features = change(points)[:rows]
            probe.on_train_batch_end(trainer, module, None, [None, targets, []], index)
    return probe


def weights_of(probe):
    return probe.state_dict()["classifier"]["classification_head.weight"]


def test_labels_of_held_out_images_are_never_learned_and_all_others_are():
    images = Points()
    _, held_out = choose_images(images.targets, seed=3)
    held_out = [index for index in held_out if index >= 10]
    assert held_out
    weights = weights_of(fit(images, images.targets))
    wrong = list(images.targets)
    for index in held_out:
        wrong[index] = (wrong[index] + 1) % CLASSES
    assert torch.equal(weights_of(fit(images, wrong)), weights)
    for index in (12, 77, 149):
        assert index not in held_out
        one = list(images.targets)
        one[index] = (one[index] + 1) % CLASSES
        assert not torch.equal(weights_of(fit(images, one)), weights)


def test_the_accuracy_is_that_of_the_classifier_in_percent():
    images = Points()
    probe = fit(images, images.targets)
    head = probe.state_dict()["classifier"]
    logits = images.points @ head["classification_head.weight"].T + head["classification_head.bias"]
    targets = torch.tensor(images.targets)
    expected = 100 * (logits.argmax(1) == targets).double().mean().item()
    assert probe.measure(Features(images.points, targets)) == pytest.approx(expected)
    assert expected > 90
    assert probe.measure(Features(images.points, (targets + 1) % CLASSES)) < 10


def test_fewer_mixtures_than_images_have_the_labels_of_the_first_images():
    images = Points()
    probe = fit(images, images.targets, epochs=16, rows=BATCH // 2)
    assert probe.measure(Features(images.points, torch.tensor(images.targets))) > 90
    assert fit(images, images.targets, rows=0).is_trained  # a batch without known rows is skipped


def test_features_that_overflow_in_half_precision_leave_the_classifier_finite():
    images = Points()
    probe = fit(images, images.targets, change=lambda x: x.where(x < 4, torch.inf).half())
    assert weights_of(probe).isfinite().all()
    assert weights_of(probe).abs().max() > 0


def test_the_classifier_takes_no_random_number_and_only_the_first_process_has_one():
    images = Points()
    before = torch.get_rng_state()
    assert fit(images, images.targets, epochs=1).is_trained
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    assert not fit(images, images.targets, epochs=1, first_process=False).is_trained
    assert torch.equal(torch.get_rng_state(), after)  # the loader's draws alone


def test_a_module_without_features_has_no_probe_and_one_line_says_so(capsys):
    probe, module = OnlineProbe(Points(), seed=3), types.SimpleNamespace()
    probe.on_fit_start(None, module)
    probe.on_train_epoch_start(None, module)
    probe.on_train_batch_end(None, module, None, None, 0)
    assert not probe.is_trained
    assert probe.state_dict() == {}
    printed = capsys.readouterr().out
    assert printed == "No online probe: SimpleNamespace sets no step_features in its steps.\n"


def test_a_step_of_the_probe_never_waits_for_a_gpu_and_is_that_on_the_cpu():
    images = Points()
    points, targets = images.points[:BATCH], torch.tensor(images.targets[:BATCH])
    weights = []
    for device in ("cpu", "cuda:0"):
        probe = OnlineProbe(images, seed=3)
        with pretended_gpu() as gpu:
            device = torch.device(device)
            trainer = types.SimpleNamespace(
                is_global_zero=True, strategy=types.SimpleNamespace(root_device=device)
            )
            module = types.SimpleNamespace(backbone=types.SimpleNamespace(feature_dim=DIM))
            module.step_features = points.to(device)
            batch = [None, targets.to(device), []]
            probe.on_fit_start(trainer, module)
            probe._rows = [torch.tensor([0, 2, 3])]
            gpu.waits.clear()
            for _ in range(3):
                probe.on_train_batch_end(trainer, module, None, batch, 0)
            assert gpu.waits == []
            weight = weights_of(probe)
            weights.append(gpu.values(weight) if device.type == "cuda" else weight)
    torch.testing.assert_close(*weights)


def state_of(run):
    return torch.load(run / LAST, weights_only=True)


IN_CHUNKS = ["--objective", "selfcon-mu", "--chunk_size", 8, "--precision", "bf16-mixed"]


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        pytest.param("imix", ["--memory_bank_size", 32], marks=pytest.mark.slow),
        ("selfcon", [*IN_CHUNKS, "--mix_weight", 0.5, "--mix_probability", 0.5]),
    ],
)
def test_a_run_with_a_probe_has_the_weights_of_one_without_and_resumes_with_it(
    recipe, options, image_folder, tmp_path, run_here
):
    options = [*tiny_run(image_folder), *options, "--augment", "workers"]
    options += ["--protocol", "knn", "--random_init=false"]
    options += ["--knn_every_n_epochs", 1, "--keep_every_n_epochs", 1]
    for probe in ("false", "true"):
        folder = tmp_path / probe
        choice = ["--online_probe", probe, "--output_dir", folder]
        code, _, error = run_here(recipe, *options, *choice)
        assert code == 0, error
    shutil.copytree(tmp_path / "true", tmp_path / "part")
    shutil.copy(tmp_path / "part" / "checkpoints" / "epoch-0001.ckpt", tmp_path / "part" / LAST)
    resume = ["--config", tmp_path / "part" / "config.yaml", "--resume"]
    code, printed, error = run_here(recipe, *resume, "--output_dir", tmp_path / "part")
    assert code == 0, error
    assert "online_top1" in printed

    without, whole, part = (state_of(tmp_path / name) for name in ("false", "true", "part"))
    assert PROBE not in without["callbacks"]
    for one in (without, part):
        assert one["state_dict"].keys() == whole["state_dict"].keys()
        assert all(
            torch.equal(x, whole["state_dict"][name]) for name, x in one["state_dict"].items()
        )
    torch.testing.assert_close(part["callbacks"][PROBE], whole["callbacks"][PROBE], rtol=0, atol=0)
    rows = {
        name: read_metrics(tmp_path / name / "metrics.csv") for name in ("false", "true", "part")
    }
    assert rows["part"] == rows["true"]
    assert [row["step"] for row in rows["true"] if row["online_top1"]] == ["1", "3"]
    assert [{k: v for k, v in row.items() if k != "online_top1"} for row in rows["true"]] == (
        rows["false"]
    )


def test_a_probe_without_its_images_is_refused(image_folder, tmp_path, run_here):
    options = tiny_run(image_folder, "--online_probe", "true", "--knn_every_n_epochs", 0)
    code, _, error = run_here("moco", *options, "--output_dir", tmp_path / "run")
    assert code == 1
    assert "--online_probe is measured when the nearest neighbours are" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_train_in_chunks_with_a_probe_and_mix_the_same_steps(image_folder, tmp_path):
    options = tiny_run(image_folder, "--devices", RANKS, "--accelerator", "cpu", "--batch_size", 5)
    options += ["--epochs", 6, "--chunk_size", 3, "--mix_probability", 0.5]
    options += ["--online_probe", "true", "--knn_every_n_epochs", 1, "--output_dir", "run"]
    program = tmp_path / "recipe.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(RECIPES)!r})\nimport simclr\nsimclr.recipe.main()\n"
    )
    result = launch("fork", "recipe.py", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    mixed = [bool(row["mix"]) for row in rows if row["loss"]]
    assert {True, False} == set(mixed)
    assert len([row for row in rows if row["online_top1"]]) == 6
