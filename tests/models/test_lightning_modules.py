"""MoCo and SimCLR: which images go through which encoder, in which order, with which loss."""

import copy

import pytest
import pytorch_lightning as pl
import torch

from mixco_lightly import MixCoCollate, MixCoLoss, create_backbone
from mixco_lightly.models.moco import MoCo
from mixco_lightly.models.simclr import SimCLR


def create_moco(mix_weight=1.0, queue=(10, 16), momentum=0.9):
    torch.manual_seed(0)
    criterion = MixCoLoss(memory_bank_size=queue, mix_weight=mix_weight)
    return attach(MoCo(create_backbone("test_resnet", image_size=16), criterion, momentum=momentum))


def create_simclr(mix_weight=1.0):
    torch.manual_seed(0)
    criterion = MixCoLoss(temperature=0.5, mix_temperature=0.4, mix_weight=mix_weight)
    return attach(SimCLR(create_backbone("test_resnet", image_size=16), criterion, 16))


def attach(model):
    """Gives a module the trainer that it asks for the world size, and a place for its logs."""
    model.trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=1
    )
    model.logged = {}
    model.log_dict = lambda values, **_: model.logged.update(values)
    return model.train()


def create_batch(n, views):
    torch.manual_seed(1)
    samples = [([torch.rand(3, 16, 16), torch.rand(3, 16, 16)], i % 3) for i in range(n)]
    return MixCoCollate(views)(samples)


def record_batch_sizes(module):
    sizes = []
    module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    return sizes


def test_moco_runs_queries_and_mixtures_in_one_forward_and_only_plain_images_as_keys():
    model = create_moco()
    queries = record_batch_sizes(model.backbone)
    keys = record_batch_sizes(model.backbone_momentum)
    model.training_step(create_batch(6, (0,)), 0)
    assert queries == [6 + 3]
    assert keys == [6]


def test_moco_with_mix_weight_zero_pays_for_no_mixture():
    model = create_moco(mix_weight=0.0)
    queries = record_batch_sizes(model.backbone)
    (views, targets, _) = create_batch(6, (0,))
    model.training_step([views, targets], 0)
    assert queries == [6]
    assert model.logged["mix"] == 0
    assert model.logged["loss"] == model.logged["contrast"]


def test_simclr_runs_each_view_and_each_mixture_in_a_forward_of_its_own():
    model = create_simclr()
    sizes = record_batch_sizes(model.backbone)
    model.training_step(create_batch(6, (0, 1)), 0)
    assert sizes == [6, 6, 3, 3]


def test_simclr_with_mix_weight_zero_pays_for_no_mixture():
    model = create_simclr(mix_weight=0.0)
    sizes = record_batch_sizes(model.backbone)
    (views, targets, _) = create_batch(6, (0, 1))
    model.training_step([views, targets], 0)
    assert sizes == [6, 6]


def test_moco_loss_is_that_of_the_updated_momentum_encoder_and_the_joint_forward():
    model = create_moco()
    twin = copy.deepcopy(model)
    with torch.no_grad():  # so that the momentum update matters
        for parameter in [*model.backbone.parameters(), *twin.backbone.parameters()]:
            parameter.mul_(1.5)
    batch = create_batch(6, (0,))
    (query, key), _, (mixture,) = batch
    loss = model.training_step(batch, 0)

    with torch.no_grad():
        for encoder, ema in [
            (twin.backbone, twin.backbone_momentum),
            (twin.projection_head, twin.projection_head_momentum),
        ]:
            for new, old in zip(encoder.parameters(), ema.parameters(), strict=True):
                old.copy_(0.9 * old + 0.1 * new)
        keys = twin.projection_head_momentum(twin.backbone_momentum(key))
    joint = twin.projection_head(twin.backbone(torch.cat([query, mixture.images])))
    expected = twin.criterion(joint[:6], keys, joint[6:], mixture)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


def test_momentum_encoder_is_m_old_plus_one_minus_m_new_and_gets_no_gradient():
    model = create_moco(momentum=0.75)
    name = "model.conv1.0.weight"
    with torch.no_grad():
        model.backbone.get_parameter(name).add_(1.0)
    old = model.backbone_momentum.get_parameter(name).clone()
    new = model.backbone.get_parameter(name).clone()
    model.training_step(create_batch(4, (0,)), 0).backward()
    updated = model.backbone_momentum.get_parameter(name)
    torch.testing.assert_close(updated, 0.75 * old + 0.25 * new)
    momentum_parameters = [
        *model.backbone_momentum.parameters(),
        *model.projection_head_momentum.parameters(),
    ]
    assert all(parameter.grad is None for parameter in momentum_parameters)
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())


def test_momentum_encoder_moves_in_float32_toward_a_constant_by_the_closed_form():
    model = create_moco(momentum=0.99)
    name = "model.conv1.0.weight"
    start = model.backbone_momentum.get_parameter(name).clone()
    with torch.no_grad():
        model.backbone.get_parameter(name).fill_(1.0)
    batch = create_batch(2, (0,))
    for step in range(20):
        model.training_step(batch, step)
    expected = 1 - (1 - start) * 0.99**20
    torch.testing.assert_close(model.backbone_momentum.get_parameter(name), expected)


class CountUpdates(pl.Callback):
    """Counts optimiser steps, and notes in which of them the momentum encoder moved."""

    def __init__(self):
        self.steps = 0
        self.moved_before_step = []

    def on_train_start(self, trainer, module):
        update = module._update_momentum_encoder

        def counted_update():
            self.moved_before_step.append(trainer.global_step)
            update()

        module._update_momentum_encoder = counted_update

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps += 1


def count_updates(accumulate, *callbacks, ckpt_path=None):
    """Fits MoCo for epochs of 10 batches."""
    torch.manual_seed(0)
    criterion = MixCoLoss(memory_bank_size=(10, 16))
    model = MoCo(create_backbone("test_resnet", image_size=16), criterion, momentum=0.9)
    samples = [([torch.rand(3, 16, 16), torch.rand(3, 16, 16)], 0) for _ in range(20)]
    loader = torch.utils.data.DataLoader(samples, batch_size=2, collate_fn=MixCoCollate())
    counts = CountUpdates()
    trainer = pl.Trainer(
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[counts, *callbacks],
    )
    trainer.fit(model, loader, ckpt_path=ckpt_path, weights_only=True)
    return counts, trainer


@pytest.mark.parametrize("accumulate", [1, 4, 5, 20])
def test_the_momentum_encoder_moves_once_for_each_optimiser_step(accumulate):
    counts, _ = count_updates(accumulate)
    # With 4 the last two batches of an epoch of 10 are a step too.
    assert counts.steps == 2 * -(-10 // accumulate)
    assert counts.moved_before_step == list(range(counts.steps))


@pytest.mark.parametrize("saved_step", [2, 3])  # in the middle of an epoch, and at its end
def test_after_a_resume_the_momentum_encoder_moves_once_for_each_optimiser_step(
    saved_step, tmp_path
):
    checkpoint = pl.callbacks.ModelCheckpoint(
        tmp_path, "{step}", save_top_k=-1, every_n_train_steps=saved_step
    )
    whole, _ = count_updates(4, checkpoint)
    assert whole.moved_before_step == list(range(6))
    counts, trainer = count_updates(4, ckpt_path=tmp_path / f"step={saved_step}.ckpt")
    assert counts.moved_before_step == list(range(saved_step, saved_step + counts.steps))
    assert trainer.global_step == saved_step + counts.steps >= 6


def test_without_a_trainer_the_momentum_encoder_moves_in_every_step():
    model = create_moco(momentum=0.0)
    model._trainer = None
    for batch_idx in range(2):
        with torch.no_grad():
            model.backbone.get_parameter("model.conv1.0.weight").add_(1.0)
        model.training_step(create_batch(4, (0,)), batch_idx)
        for new, old in zip(
            model.backbone.parameters(), model.backbone_momentum.parameters(), strict=True
        ):
            assert torch.equal(new, old)


def test_simclr_loss_mixes_both_views_at_half_weight_against_the_other_view():
    model = create_simclr()
    twin = copy.deepcopy(model)
    batch = create_batch(6, (0, 1))
    (view0, view1), _, (mixture0, mixture1) = batch
    loss = model.training_step(batch, 0)
    z0, z1, mixed0, mixed1 = (
        twin.projection_head(twin.backbone(images))
        for images in (view0, view1, mixture0.images, mixture1.images)
    )
    halves = [
        MixCoLoss(0.5, 0.4).forward_components(z0, z1, mixed0, mixture0).mix,
        MixCoLoss(0.5, 0.4).forward_components(z1, z0, mixed1, mixture1).mix,
    ]
    contrast = MixCoLoss(0.5)(z0, z1)
    torch.testing.assert_close(loss, contrast + 0.5 * halves[0] + 0.5 * halves[1])


def test_simclr_gradient_of_the_mixtures_flows_through_the_other_view():
    criterion = MixCoLoss(0.5, 0.4)
    torch.manual_seed(0)
    z0, z1, mixed = (torch.randn(n, 8, requires_grad=True) for n in (4, 4, 2))
    mixture = create_batch(4, (0,))[-1][0]
    criterion.forward_components(z0, z1, mixed, mixture).mix.backward()
    assert z1.grad is not None
    assert z1.grad.abs().sum() > 0


@pytest.mark.parametrize("n", [2, 3, 5, 7])
@pytest.mark.parametrize("create", [create_moco, create_simclr])
def test_any_batch_of_two_or_more_gives_a_finite_loss_and_gradient(create, n):
    model = create()
    loss = model.training_step(create_batch(n, (0, 1)), 0)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.backbone.parameters())


def test_moco_enqueues_the_keys_of_each_batch_once_whatever_its_size():
    model = create_moco(queue=(10, 16))
    for n in (4, 4, 3):  # 11 keys: the ring of 10 wraps to row 1
        model.training_step(create_batch(n, (0,)), 0)
    assert int(model.criterion.queue.position) == 1


@pytest.mark.parametrize("create", [create_moco, create_simclr])
def test_a_batch_without_mixtures_says_what_to_set(create):
    views, targets, _ = create_batch(4, (0,))
    with pytest.raises(ValueError, match="collate_fn=MixCoCollate"):
        create().training_step([views, targets], 0)


def test_simclr_with_one_mixed_view_says_that_it_needs_two():
    with pytest.raises(ValueError, match=r"views of MixCoCollate or MixCollate to \(0, 1\)"):
        create_simclr().training_step(create_batch(4, (0,)), 0)


def test_methods_refuse_the_loss_of_the_other_method():
    backbone = create_backbone("test_resnet", image_size=16)
    with pytest.raises(ValueError, match="memory_bank_size"):
        MoCo(backbone, MixCoLoss())
    with pytest.raises(ValueError, match="memory_bank_size"):
        SimCLR(backbone, MixCoLoss(memory_bank_size=(8, 16)))
    with pytest.raises(ValueError, match=r"1\.5"):
        MoCo(backbone, MixCoLoss(memory_bank_size=(8, 16)), momentum=1.5)


@pytest.mark.parametrize(
    ("warmup_epochs", "expected"),
    [(0, [1.0, 0.75, 0.25, 0.0]), (2, [0.5, 1.0, 1.0, 0.0])],
)
def test_learning_rate_is_linear_warmup_then_half_a_cosine_to_zero(warmup_epochs, expected):
    model = MoCo(
        create_backbone("test_resnet", image_size=16),
        MixCoLoss(memory_bank_size=(8, 16)),
        learning_rate=0.02,
        warmup_epochs=warmup_epochs,
    )
    rates = []

    class Record(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"] / 0.02)

    samples = [([torch.rand(3, 16, 16), torch.rand(3, 16, 16)], 0) for _ in range(4)]
    loader = torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=MixCoCollate())
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Record()],
    )
    trainer.fit(model, loader)
    assert rates == pytest.approx(expected, abs=1e-6)
