"""What is measured while a run trains, and that it disturbs nothing."""

import types
from collections import Counter

import numpy as np
import pytest
import torch

from tests.run_recipe import RECIPES, tiny_run


@pytest.fixture(autouse=True)
def recipe_modules(monkeypatch):
    """Lets a test import the recipes' modules."""
    monkeypatch.syspath_prepend(str(RECIPES))


def test_bank_and_queries_are_a_capped_share_with_as_many_images_of_each_class():
    from mixco_lightly.training.training_knn import choose_images

    targets = np.random.default_rng(1).permutation([0] * 500 + [1] * 300 + [2] * 200)
    bank, queries = choose_images(targets.tolist(), seed=0)
    assert len(bank) + len(queries) == 200  # a fifth
    assert not set(bank) & set(queries)
    assert Counter(targets[bank + queries].tolist()) == {0: 67, 1: 67, 2: 66}
    per_class = Counter(targets[queries].tolist())
    assert set(per_class) == {0, 1, 2}
    assert set(per_class.values()) <= {13, 14}  # one for four of the bank

    assert choose_images(targets.tolist(), seed=0) == (bank, queries)
    assert choose_images(targets.tolist(), seed=1) != (bank, queries)
    many = [index % 10 for index in range(100_000)]
    assert sum(map(len, choose_images(many, seed=0))) == 5000


@pytest.mark.parametrize("targets", [[0], [0, 1], list(range(50)), [0] * 5])
def test_too_few_images_give_no_queries(targets):
    from mixco_lightly.training.training_knn import choose_images

    assert choose_images(targets, seed=0)[1] == []


def test_a_run_with_knn_in_every_epoch_has_the_weights_and_metrics_of_one_without(
    image_folder, tmp_path, run_here
):
    options = tiny_run(image_folder, "--memory_bank_size", 8, "--augment", "workers")
    options += ["--protocol", "knn", "--random_init=false"]
    states, metrics = [], []
    for every in (0, 1):
        folder = tmp_path / str(every)
        choice = ["--knn_every_n_epochs", every, "--output_dir", folder]
        code, _, error = run_here("moco", *options, *choice)
        assert code == 0, error
        saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        states.append(saved["state_dict"])
        from mixco_lightly.training.metrics import read_metrics

        metrics.append(read_metrics(folder / "metrics.csv"))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with_knn = metrics[1]
    assert [row["step"] for row in with_knn if row["knn_top1"]] == ["1", "3"]
    assert [{**row, "knn_top1": ""} for row in with_knn if not row["knn_top1"]] == [
        {**row, "knn_top1": ""} for row in metrics[0]
    ]


class Steps:
    """The part of a trainer in bf16-mixed that the callback asks."""

    is_global_zero, max_epochs, current_epoch, global_step = True, 4, 3, 40

    def __init__(self):
        self.rows = []
        self.loggers = [self]
        self.precision_plugin = self

    def forward_context(self):
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def log_metrics(self, metrics, step):
        self.rows.append((metrics, step))


def test_knn_is_that_of_plain_images_in_eval_mode_and_leaves_the_module_and_the_dice_alone():
    from mixco_lightly import Features, create_backbone, knn_probe
    from mixco_lightly.data.catalogue import create_dataset, get_dataset
    from mixco_lightly.data.transforms import create_test_transform
    from mixco_lightly.training.training_knn import TrainingKNN, choose_images

    transform = create_test_transform(get_dataset("digits").facts, 16)
    images = create_dataset("digits", "", train=True, transform="the run's own, random one")
    torch.manual_seed(0)
    module = types.SimpleNamespace(backbone=create_backbone("test_resnet", 16).train())
    module.backbone.model.bn1.eval()  # a mode of its own
    modes = [part.training for part in module.backbone.modules()]
    state = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002

    trainer = Steps()
    knn = TrainingKNN(images, transform, 5, batch_size=64, num_workers=0, seed=3)
    knn.on_train_epoch_end(trainer, module)

    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002
    assert [part.training for part in module.backbone.modules()] == modes
    now = module.backbone.state_dict()
    assert all(torch.equal(now[name], state[name]) for name in state)
    assert images.transform == "the run's own, random one"

    plain = create_dataset("digits", "", train=True, transform=transform)
    module.backbone.eval()
    features = []
    for part in choose_images(plain.targets, seed=3):
        with torch.no_grad():
            rows = module.backbone(torch.stack([plain[index][0] for index in part]))
        features.append(Features(rows, torch.tensor([plain[index][1] for index in part])))
    expected = knn_probe(*features, k=20).top1
    ((metrics, step),) = trainer.rows
    assert step == 39
    assert metrics == {"epoch": 3, "knn_top1": pytest.approx(expected)}
    assert 20 < expected < 100  # chance is 10


def test_knn_while_training_is_measured_in_float32_whatever_the_training_precision(monkeypatch):
    import mixco_lightly.training.training_knn as training_knn
    from mixco_lightly import create_backbone
    from mixco_lightly.data.catalogue import create_dataset, get_dataset
    from mixco_lightly.data.transforms import create_test_transform

    images = create_dataset("digits", "", train=True)
    transform = create_test_transform(get_dataset("digits").facts, 16)
    backbone = create_backbone("test_resnet", 16)
    measured = []
    monkeypatch.setattr(
        training_knn,
        "knn_probe",
        lambda *features, k: measured.extend(features) or types.SimpleNamespace(top1=0.0),
    )
    knn = training_knn.TrainingKNN(images, transform, 5, batch_size=64, num_workers=0, seed=3)
    knn.on_train_epoch_end(Steps(), types.SimpleNamespace(backbone=backbone))
    for part, indices in zip(measured, training_knn.choose_images(images.targets, 3), strict=True):
        with torch.no_grad():
            expected = backbone.eval()(torch.stack([transform(images[i][0]) for i in indices]))
        # In bfloat16 the difference is about 1e-2.
        torch.testing.assert_close(part.features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("epoch", "due"), [(0, False), (1, True), (2, False), (3, True), (4, True)]
)
def test_knn_is_due_every_few_epochs_and_after_the_last(epoch, due, monkeypatch):
    import mixco_lightly.training.training_knn as training_knn
    from mixco_lightly.data.catalogue import create_dataset

    features = types.SimpleNamespace(features=torch.ones(2, 2))
    monkeypatch.setattr(training_knn, "extract_features", lambda *_: features)
    monkeypatch.setattr(
        training_knn, "knn_probe", lambda *_, k: types.SimpleNamespace(top1=float(k))
    )
    knn = training_knn.TrainingKNN(create_dataset("digits", "", train=True), None, 2, 64, 0, 0)
    trainer = Steps()
    trainer.max_epochs, trainer.current_epoch = 5, epoch
    knn.on_train_epoch_end(trainer, types.SimpleNamespace(backbone=None))
    assert bool(trainer.rows) == (epoch in (1, 3, 4))


def test_features_that_are_not_finite_leave_one_knn_out_and_the_run_goes_on(capsys):
    from mixco_lightly import create_backbone
    from mixco_lightly.data.catalogue import create_dataset, get_dataset
    from mixco_lightly.data.transforms import create_test_transform
    from mixco_lightly.training.training_knn import TrainingKNN

    images = create_dataset("digits", "", train=True)
    knn = TrainingKNN(images, create_test_transform(get_dataset("digits").facts, 16), 1, 64, 0, 0)
    trainer, backbone = Steps(), create_backbone("test_resnet", 16)
    with torch.no_grad():
        backbone.model.bn1.weight.fill_(torch.inf)
    knn.on_train_epoch_end(trainer, types.SimpleNamespace(backbone=backbone))
    assert trainer.rows == []
    assert capsys.readouterr().out == (
        "No kNN in epoch 4: there are features that are not finite.\n"
    )


def test_images_of_one_class_have_no_knn_and_one_line_says_so(capsys):
    from mixco_lightly.data.catalogue import create_dataset
    from mixco_lightly.training.training_knn import TrainingKNN

    images = create_dataset("digits", "", train=True)
    images.targets = [0] * len(images)
    knn, trainer = TrainingKNN(images, None, 1, 64, 0, 0), Steps()
    knn.on_fit_start(trainer, None)
    knn.on_train_epoch_end(trainer, types.SimpleNamespace(backbone=None))
    assert trainer.rows == []
    assert capsys.readouterr().out == "No kNN while training: all images are of one class.\n"


def test_curves_have_a_plot_for_each_kind_of_metric_that_was_recorded(tmp_path, monkeypatch):
    import matplotlib.figure

    import mixco_lightly.training.metrics as metrics

    drawn = {}

    class Figure(matplotlib.figure.Figure):
        def savefig(self, *args, **kwargs):
            for axes in self.axes:
                drawn[axes.get_title()] = {
                    line.get_label(): line.get_xydata().tolist() for line in axes.lines
                }
            super().savefig(*args, **kwargs)

    monkeypatch.setattr(matplotlib.figure, "Figure", Figure)
    file = metrics.MetricsFile(tmp_path / "metrics.csv")
    for step in (9, 19):
        file.log_metrics({"loss": step / 10, "contrast": 1.0, "learning_rate": 0.1}, step)
    file.log_metrics({"knn_top1": 60.0, "online_top1": 50.0}, 19)
    metrics.draw_curves(tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert drawn == {
        "losses": {"loss": [[9, 0.9], [19, 1.9]], "contrast": [[9, 1.0], [19, 1.0]]},
        "kNN of held-out labels": {"knn_top1": [[19, 60.0]], "online_top1": [[19, 50.0]]},
        "learning rate": {"learning_rate": [[9, 0.1], [19, 0.1]]},
    }


def test_a_progress_bar_shows_what_was_logged_last_without_asking_the_device(tmp_path):
    import mixco_lightly.training.metrics as metrics
    import mixco_lightly.training.progress as progress

    file = metrics.MetricsFile(tmp_path / "metrics.csv")
    trainer = types.SimpleNamespace(loggers=[file])
    assert progress.shown_metrics(trainer) == {}
    file.log_metrics({"loss": 2.0, "learning_rate": 0.1, "epoch": 0}, 9)
    assert progress.shown_metrics(trainer) == {"loss": 2.0}


def test_the_knn_is_printed_in_the_epoch_it_was_measured_in_and_a_bar_names_that_epoch(
    image_folder, tmp_path, run_here, monkeypatch
):
    import mixco_lightly.training.metrics as metrics
    import mixco_lightly.training.progress as progress

    options = tiny_run(image_folder, "--epochs", 4, "--knn_every_n_epochs", 2)
    options += ["--memory_bank_size", 8, "--protocol", "knn", "--output_dir", tmp_path / "run"]
    code, printed, _ = run_here("moco", *options)
    assert code == 0
    lines = [line for line in printed.splitlines() if line.startswith("epoch ")]
    assert ["knn_top1" in line for line in lines] == [False, True, False, True]

    file = metrics.MetricsFile(tmp_path / "metrics.csv")
    trainer = types.SimpleNamespace(loggers=[file], current_epoch=4)
    file.log_metrics({"loss": 2.0, "epoch": 4}, 9)
    file.log_metrics({"knn_top1": 60.0, "online_top1": 50.0, "epoch": 4}, 9)
    assert progress.shown_metrics(trainer) == {"loss": 2.0, "knn_top1": 60.0, "online_top1": 50.0}
    trainer.current_epoch = 5
    old = {"knn_top1 of epoch 5": 60.0, "online_top1 of epoch 5": 50.0}
    assert progress.shown_metrics(trainer) == {"loss": 2.0, **old}
