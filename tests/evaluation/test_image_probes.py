import copy
import os
import random
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.utils.data import TensorDataset

from mixco_lightly import Features, create_backbone
from mixco_lightly.evaluation.calibration import calibration_error
from mixco_lightly.evaluation.image_probes import finetune_probe, paper_probe
from mixco_lightly.evaluation.image_training import seeded


class SmallBackbone(nn.Sequential):
    """BatchNorm and dropout, both of which behave differently in training."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
        )
        self[1].running_mean.uniform_(-0.5, 0.5)
        self[1].running_var.uniform_(0.5, 2.0)
        self.feature_dim = 6


def make_images(n=24, num_classes=3, noise=0.5, seed=0):
    """Noise whose mean colour is the class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % num_classes
    colours = torch.eye(3)[targets % 3] * (1 + targets[:, None] // 3)
    images = colours[:, :, None, None] + noise * torch.randn(n, 3, 8, 8, generator=generator)
    return TensorDataset(images, targets)


def frozen_features(backbone, images):
    model = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        return Features(model(images.tensors[0]), images.tensors[1])


def run_paper(backbone=None, train=None, test=None, num_classes=3, **options):
    backbone, train = backbone or SmallBackbone(), train or make_images()
    test = frozen_features(backbone, test or make_images(15, num_classes, seed=1))
    return paper_probe(backbone, train, test, num_classes, **{"epochs": 5, **options})


def run_finetune(backbone=None, train=None, test=None, num_classes=3, **options):
    backbone, train = backbone or SmallBackbone(), train or make_images()
    test = test or make_images(15, num_classes, seed=1)
    return finetune_probe(backbone, train, test, num_classes, **{"epochs": 3, **options})


PROBES = [run_paper, run_finetune]


class Spy(Callback):
    """Keeps the classifier's weights after each step, and the networks' modes in it."""

    def __init__(self):
        self.heads, self.rates, self.modes = [], [], []

    def keep(self, module):
        head = module.classification_head
        self.heads.append((head.weight.detach().clone(), head.bias.detach().clone()))

    def on_train_start(self, trainer, pl_module):
        self.keep(pl_module)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.modes.append({module.training for module in pl_module.model.modules()})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.keep(pl_module)
        self.model = copy.deepcopy(pl_module.model)


def test_paper_is_sgd_on_the_frozen_features_with_rate_3_divided_at_60_and_80_percent():
    backbone, images = SmallBackbone(), make_images()
    spy = Spy()
    run_paper(backbone, images, epochs=10, callbacks=[spy])
    features, targets = frozen_features(backbone, images)
    weight, bias = spy.heads[0]
    assert weight.std() == pytest.approx(0.01, rel=0.5)
    assert bias.tolist() == [0, 0, 0]
    momentum_w, momentum_b = torch.zeros_like(weight), torch.zeros_like(bias)
    # The 24 images are one batch, so that their order does not matter.
    for rate, (after_w, after_b) in zip(
        6 * [3.0] + 2 * [0.3] + 2 * [0.03], spy.heads[1:], strict=True
    ):
        error = (features @ weight.T + bias).softmax(dim=1) - torch.eye(3)[targets]  # NxC
        momentum_w = 0.9 * momentum_w + error.T @ features / 24
        momentum_b = 0.9 * momentum_b + error.mean(dim=0)
        weight, bias = weight - rate * momentum_w, bias - rate * momentum_b
        torch.testing.assert_close(after_w, weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(after_b, bias, rtol=1e-4, atol=1e-5)


def test_papers_learning_rate_is_not_scaled_with_the_batch():
    spy = Spy()
    run_paper(batch_size=5, epochs=1, callbacks=[spy])
    assert spy.rates == [3.0] * 5


@pytest.mark.parametrize("training", [True, False])
def test_paper_leaves_weights_statistics_and_modes_of_the_backbone_as_they_were(training):
    backbone = SmallBackbone().train(training)
    backbone[5].train(not training)
    before = copy.deepcopy(backbone.state_dict())
    modes = [module.training for module in backbone.modules()]
    spy = Spy()
    run_paper(backbone, batch_size=7, callbacks=[spy])
    assert spy.modes == [{False}] * 20  # 5 epochs of 4 steps, each after a test but the first
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert [module.training for module in backbone.modules()] == modes
    # What it trains is the classifier.
    assert not torch.equal(spy.heads[0][0], spy.heads[-1][0])


def test_last_and_best_epoch_are_what_the_classifier_of_that_epoch_gets_right():
    backbone = SmallBackbone()
    train, test = (make_images(60, 6, noise=3.0, seed=seed) for seed in (0, 1))
    spy = Spy()
    results = run_paper(backbone, train, test, num_classes=6, epochs=12, callbacks=[spy])
    features, targets = frozen_features(backbone, test)
    accuracies = []
    for weight, bias in spy.heads[1:]:
        ranked = (features @ weight.T + bias).argsort(dim=1, descending=True)
        hits = ranked == targets[:, None]
        accuracies.append([100 * hits[:, :k].any(dim=1).double().mean().item() for k in (1, 5)])
    top1 = [first for first, _ in accuracies]
    assert top1[-1] < max(top1)  # or this would not test anything
    assert results.best_epoch == 1 + top1.index(max(top1))
    assert results.last[:2] == pytest.approx(accuracies[-1])
    assert results.best[:2] == pytest.approx(accuracies[results.best_epoch - 1])


def test_the_calibration_error_is_of_the_test_logits_after_the_last_and_the_best_epoch():
    backbone, spy = SmallBackbone(), Spy()
    images = make_images(15, noise=1.5, seed=1)
    # An epoch is one step.
    results = run_paper(backbone, make_images(noise=1.5), images, epochs=6, callbacks=[spy])
    features, targets = frozen_features(backbone, images)
    errors = [
        calibration_error(features @ weight.T + bias, targets) for weight, bias in spy.heads[1:]
    ]
    assert results.last.measures["ECE"] == pytest.approx(errors[-1], rel=1e-3)
    assert results.best.measures["ECE"] == pytest.approx(errors[results.best_epoch - 1], rel=1e-3)
    assert len({round(error, 2) for error in errors}) == 6


@pytest.mark.parametrize("run", PROBES)
def test_top5_of_few_classes_says_what_it_is(run):
    results = run(num_classes=3)
    assert results.last.top5 == 100
    assert results.last.note == results.best.note == "top5 is top3: 3 classes"


def draw_from_all(batch):
    """Noise from each generator that an augmentation may use."""
    noise = torch.rand(len(batch), 1, 1, 1) + random.random() + np.random.random()  # noqa: NPY002
    return batch + noise


@pytest.mark.parametrize("run", PROBES)
def test_the_seed_decides_and_all_generators_are_left_as_they_were(run, monkeypatch):
    def outcome(seed):
        spy = Spy()
        run(backbone, batch_size=7, seed=seed, augment=draw_from_all, callbacks=[spy])
        return spy.heads[-1][0]

    def states():
        numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
        return torch.get_rng_state().tolist(), random.getstate(), numpy_state

    backbone = SmallBackbone()  # seeds too
    # The generators of a GPU that is there and not used.
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds CUDA"))
    before, environment = states(), dict(os.environ)
    first = outcome(0)
    assert states() == before
    assert dict(os.environ) == environment  # PL_GLOBAL_SEED
    torch.rand(3), random.random(), np.random.random()  # noqa: NPY002
    assert torch.equal(outcome(0), first)
    assert not torch.equal(outcome(1), first)


@pytest.mark.parametrize("run", PROBES)
def test_a_probe_that_fails_leaves_all_generators_as_they_were(run):
    backbone = SmallBackbone()  # seeds
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(ZeroDivisionError):
        run(backbone, augment=lambda batch: draw_from_all(batch) / (1 // 0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_the_generator_of_the_probes_gpu_is_seeded_and_restored_and_no_other(monkeypatch):
    class Generators:
        """torch.cuda's functions for two devices."""

        def __init__(self):
            self.states = {0: "first", 1: "second"}

        def get_rng_state(self, device):
            return self.states[device.index]

        def set_rng_state(self, state, device):
            self.states[device.index] = state

    cuda, create = Generators(), torch.Generator
    monkeypatch.setattr(torch, "get_device_module", lambda device: cuda)
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": create())
    with seeded(7, torch.device("cuda", 1)):
        assert cuda.states[0] == "first"
        assert torch.equal(cuda.states[1], create().manual_seed(7).get_state())
    assert cuda.states == {0: "first", 1: "second"}


@pytest.mark.parametrize("run", PROBES)
def test_in_a_slurm_job_no_requeueing_is_installed_and_no_stray_checkpoint_loaded(
    run, tmp_path, monkeypatch
):
    class Handlers(Callback):
        def on_train_start(self, trainer, pl_module):
            handlers.append(signal.getsignal(signal.SIGUSR1))

    handlers = [signal.getsignal(signal.SIGUSR1)]
    expected = run(callbacks=[Handlers()])
    variables = {"NTASKS": 4, "JOB_NAME": "mixco", "JOB_ID": 1, "PROCID": 0, "LOCALID": 0}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("of another program")
    assert run(callbacks=[Handlers()]) == expected
    assert len(handlers) == 3
    assert len(set(handlers)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["hpc_ckpt_1.ckpt"]


@pytest.mark.parametrize("run", PROBES)
def test_training_images_are_augmented_and_test_images_are_not(run):
    seen = []

    def augment(batch):
        seen.append(batch)
        return batch

    images = make_images()
    run(train=images, batch_size=7, epochs=2, augment=augment)
    assert [len(batch) for batch in seen] == [7, 7, 7, 3] * 2
    for epoch in (torch.cat(seen[:4]), torch.cat(seen[4:])):
        # Each image once, in an order of its own.
        assert torch.equal(
            epoch.flatten(1).sum(dim=1).sort().values,
            images.tensors[0].flatten(1).sum(dim=1).sort().values,
        )
    assert not torch.equal(torch.cat(seen[:4]), torch.cat(seen[4:]))


@pytest.mark.parametrize("training", [True, False])
def test_finetune_trains_a_copy_and_leaves_the_original(training):
    backbone = SmallBackbone().train(training).requires_grad_(False)
    before = copy.deepcopy(backbone.state_dict())
    spy = Spy()
    run_finetune(backbone, callbacks=[spy])
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert {module.training for module in backbone.modules()} == {training}
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert spy.modes == [{True}] * 3
    for name, tensor in spy.model.state_dict().items():
        assert not torch.equal(tensor, before[name]), name


def test_finetune_has_lightlys_learning_rate_and_cosine():
    spy = Spy()
    run_finetune(batch_size=8, epochs=2, callbacks=[spy])
    assert spy.rates[0] == pytest.approx(0.05 * 8 / 256)
    assert all(later < earlier for earlier, later in pairwise(spy.rates))


def test_finetune_of_a_timm_backbone_learns_and_leaves_out_a_last_batch_of_one():
    backbone = create_backbone("test_resnet", image_size=8, stem="timm").eval()
    images = make_images(17, noise=0.1)
    spy = Spy()
    results = run_finetune(
        backbone, images, images, batch_size=8, epochs=10, learning_rate=1.0, callbacks=[spy]
    )
    assert len(spy.modes) == 10 * 2
    assert results.best.top1 > 90


@pytest.mark.parametrize("run", PROBES)
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_classes": 1}, "two classes"),
        ({"learning_rate": 1e38}, "diverged .* 1e\\+38"),
    ],
)
def test_bad_options_and_divergence_are_value_errors(run, options, match):
    backbone = SmallBackbone().train()
    with pytest.raises(ValueError, match=match):
        run(backbone, **options)
    assert all(module.training for module in backbone.modules())
