"""SelfCon: which images and labels reach the loss, which exits, and what the losses add up to."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mixco_lightly import MixCoCollate, MixCoLoss, MultiExitBackbone, SelfConLoss, export_backbone
from mixco_lightly.models.selfcon import SelfCon, SelfConClassifier

LABELS = torch.tensor([0, 1, 0, 2, 1, 2])


def network_of(exits=(1, 2)):
    torch.manual_seed(0)
    return MultiExitBackbone("test_resnet", 16, exits=exits)


def attach(model):
    """Gives a module a trainer that logs every step, and a place for its logs."""
    model.trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=1
    )
    model.logged = {}
    model.log_dict = lambda values, **_: model.logged.update(values)
    return model.train()


def selfcon_of(exits=(1, 2), **options):
    network = network_of(exits)
    options = {"criterion": SelfConLoss(), "projection_dim": 16, **options}
    return attach(SelfCon(network, **options))


def batch_of(num_views=1, mixed=False):
    torch.manual_seed(1)
    views = [torch.rand(6, 3, 16, 16) for _ in range(num_views)]
    if not mixed:
        return [views, LABELS, []]
    samples = [([view[i] for view in views], int(LABELS[i])) for i in range(6)]
    return MixCoCollate(range(num_views))(samples)


def record_inputs(module):
    inputs = []
    module.register_forward_pre_hook(lambda _, args: inputs.append(args))
    return inputs


def projections_of(model, images):
    features = model.network(images)
    pairs = zip(model.projection_heads, features, strict=True)
    return torch.stack([head(x) for head, x in pairs], dim=1)


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("exits", [(), (2,), (1, 2)])
def test_all_views_share_one_forward_and_labels_repeat_view_by_view(num_views, exits):
    model = selfcon_of(exits)
    twin = copy.deepcopy(model)
    forwards, losses = record_inputs(model.network), record_inputs(model.criterion)
    batch = batch_of(num_views)
    loss = model.training_step(batch, 0)
    assert [len(images) for (images,) in forwards] == [6 * num_views]
    ((z, labels),) = losses
    assert z.shape == (6 * num_views, len(exits) + 1, 16)
    assert labels.tolist() == LABELS.tolist() * num_views

    expected = projections_of(twin, torch.cat(batch[0]))
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(loss, SelfConLoss()(expected, LABELS.repeat(num_views)))
    assert model.logged == {"loss": loss, "contrast": loss}


def test_without_supervision_the_loss_sees_no_label():
    model = selfcon_of(supervised=False)
    losses = record_inputs(model.criterion)
    model.training_step(batch_of(), 0)
    assert losses[0][1] is None
    other = batch_of()
    other[1] = torch.zeros(6, dtype=torch.int64)
    twin = selfcon_of(supervised=False)
    assert torch.equal(twin.training_step(other, 0), model.logged["loss"])


def test_the_backbones_projections_are_the_last():
    model = selfcon_of((2,), criterion=SelfConLoss(subnetwork_weight=0.0))
    # With a weight of 0 the loss is that of the backbone alone.
    model.training_step(batch_of(), 0).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.network.subnetworks.parameters())
    assert all(p.grad.any() for p in model.projection_heads[-1].parameters())


def test_each_exit_has_a_two_layer_head_of_its_own_without_batch_norm():
    model = selfcon_of((1, 2))
    assert len(model.projection_heads) == 3
    for head in model.projection_heads:
        kinds = [type(layer) for layer in head.layers if not isinstance(layer, nn.Identity)]
        assert kinds == [nn.Linear, nn.ReLU, nn.Linear]
        assert [tuple(p.shape) for p in head.parameters()] == [(96, 96), (96,), (16, 96), (16,)]
    weights = [head.layers[0].weight for head in model.projection_heads]
    assert not torch.equal(weights[0], weights[1])


def test_with_batch_norm_each_head_normalises_its_projections_over_the_batch():
    model = selfcon_of((1, 2), batch_norm=True)
    with torch.no_grad():
        projections = model._project(model.network(torch.rand(8, 3, 16, 16)))  # (N, E, D)
    torch.testing.assert_close(projections.mean(dim=0), torch.zeros(3, 16), atol=1e-5, rtol=0)


def test_the_gradient_reaches_every_parameter():
    model = selfcon_of((1, 2))
    model.training_step(batch_of(), 0).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_simclr_is_one_exit_with_two_views_and_no_labels():
    criterion = SelfConLoss(0.5, base_temperature=0.5, num_views=2)
    model = selfcon_of((), supervised=False, criterion=criterion)
    twin = copy.deepcopy(model)
    batch = batch_of(2)
    loss = model.training_step(batch, 0)
    z0, z1 = projections_of(twin, torch.cat(batch[0]))[:, 0].chunk(2)
    torch.testing.assert_close(loss, MixCoLoss(temperature=0.5)(z0, z1))


@pytest.mark.parametrize("num_views", [1, 2])
def test_mixtures_join_the_forward_and_add_mixcos_term_of_the_last_exit(num_views):
    mix_criterion = MixCoLoss(temperature=0.3, mix_temperature=0.4, mix_weight=0.7)
    options = {"supervised": False, "mix_criterion": mix_criterion}
    model = selfcon_of((1, 2), **options)
    twin = copy.deepcopy(model)
    forwards = record_inputs(model.network)
    batch = batch_of(num_views, mixed=True)
    views, _, mixtures = batch
    loss = model.training_step(batch, 0)
    assert [len(images) for (images,) in forwards] == [(6 + 3) * num_views]

    z = projections_of(twin, torch.cat([*views, *(m.images for m in mixtures)]))
    plain, mixed = z[: 6 * num_views], z[6 * num_views :]
    contrast = SelfConLoss()(plain)
    terms = []
    for view, mixture in enumerate(mixtures):
        # Against the other view, or of a single view against itself.
        keys = plain[:, -1].chunk(num_views)[-1 - view]
        queries = mixed[:, -1].chunk(num_views)[view]
        logits = nn.functional.normalize(queries) @ nn.functional.normalize(keys).T / 0.4
        log_p = logits.log_softmax(dim=1)
        rows = torch.arange(3)
        terms.append(
            -(mixture.lam * log_p[rows, mixture.first])
            - (1 - mixture.lam) * log_p[rows, mixture.second]
        )
    mix = torch.cat(terms).mean()
    torch.testing.assert_close(model.logged["mix"], mix)
    torch.testing.assert_close(model.logged["contrast"], contrast)
    torch.testing.assert_close(loss, contrast + 0.7 * mix)
    # The gradient flows through mixtures and plain projections alike.
    loss.backward()
    (contrast + 0.7 * mix).backward()
    for actual, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-3, atol=1e-5)


def test_mixtures_are_refused_where_labels_or_a_queue_contradict_them():
    with pytest.raises(ValueError, match="needs supervised=False"):
        SelfCon(network_of(), SelfConLoss(), mix_criterion=MixCoLoss())
    with pytest.raises(ValueError, match="memory_bank_size=0"):
        SelfCon(network_of(), SelfConLoss(), False, MixCoLoss(memory_bank_size=(8, 16)))
    model = selfcon_of(supervised=False, mix_criterion=MixCoLoss())
    with pytest.raises(ValueError, match="collate_fn=MixCoCollate"):
        model.training_step([batch_of()[0], LABELS], 0)


def test_mixtures_of_more_than_two_views_are_refused_and_not_ignored():
    model = selfcon_of(supervised=False, mix_criterion=MixCoLoss())
    with pytest.raises(ValueError, match="the batch has 3 views"):
        model.training_step(batch_of(3, mixed=True), 0)


def test_three_views_train_without_mixtures():
    model = selfcon_of()
    losses = record_inputs(model.criterion)
    assert model.training_step(batch_of(3), 0).isfinite()
    assert losses[0][1].tolist() == LABELS.tolist() * 3


def classifier_of(exits=(2,), **options):
    return attach(SelfConClassifier(network_of(exits), 3, projection_dim=16, **options))


def test_cross_entropy_is_the_classifier_on_the_backbone_and_nothing_else():
    model = classifier_of(())
    twin = copy.deepcopy(model)
    batch = batch_of()
    loss = model.training_step(batch, 0)
    logits = twin.classifiers[0](twin.backbone(batch[0][0]))
    torch.testing.assert_close(loss, cross_entropy(logits, LABELS))
    assert model.logged.keys() == {"loss", "cross_entropy"}
    assert not list(model.projections.parameters())


def test_one_stage_is_both_cross_entropies_and_a_weighted_contrast_of_linear_projections():
    criterion = SelfConLoss(temperature=0.2)
    model = classifier_of((1, 2), criterion=criterion, exit_weight=0.6, contrast_weight=0.8)
    twin = copy.deepcopy(model)
    batch = batch_of()
    loss = model.training_step(batch, 0)
    features = twin.network(batch[0][0])
    pairs = zip(twin.classifiers, features, strict=True)
    first, second, last = (cross_entropy(head(x), LABELS) for head, x in pairs)
    z = [projection(x) for projection, x in zip(twin.projections, features, strict=True)]
    contrast = criterion(torch.stack(z, dim=1), LABELS)
    torch.testing.assert_close(loss, last + 0.6 * (first + second) + 0.8 * contrast)
    torch.testing.assert_close(model.logged["contrast"], contrast)
    torch.testing.assert_close(model.logged["cross_entropy"], last)
    assert all(isinstance(projection, nn.Linear) for projection in model.projections)


def test_the_backbones_projection_stays_frozen_and_lets_the_gradient_through():
    model = classifier_of((2,), criterion=SelfConLoss())
    for classifier in model.classifiers:  # so that no gradient of a cross-entropy passes it
        nn.init.zeros_(classifier.weight)
    batch = batch_of()
    model.training_step(batch, 0).backward()
    assert all(p.grad is None for p in model.projections[-1].parameters())
    assert all(p.grad.any() for p in model.projections[0].parameters())
    *_, last = model.backbone.model.layer4.parameters()
    assert last.grad.any()
    model.zero_grad()
    model.contrast_weight = 0.0
    model.training_step(batch, 0).backward()
    assert not last.grad.any()


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        SelfConClassifier(network_of(), num_classes=1)
    with pytest.raises(ValueError, match="at least one sub-network"):
        SelfConClassifier(network_of(()), num_classes=3, criterion=SelfConLoss())


@pytest.mark.parametrize("create", [selfcon_of, classifier_of])
def test_forward_and_export_are_those_of_the_backbone(create, tmp_path):
    model = create().eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(images), model.network(images)[-1])
    assert model.backbone is model.network.backbone
    export_backbone(model, tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize("create", [selfcon_of, classifier_of])
def test_the_schedule_warms_up_and_ends_at_a_thousandth_and_frozen_weights_have_none(create):
    options = {"criterion": SelfConLoss()} if create is classifier_of else {}
    model = create(**options, learning_rate=0.02, warmup_epochs=1, weight_decay=0.01)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    rates = []

    class Record(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            (group,) = trainer.optimizers[0].param_groups
            rates.append(group["lr"] / 0.02)
            assert (group["momentum"], group["weight_decay"]) == (0.9, 0.01)

    samples = [([torch.rand(3, 16, 16)], i % 3) for i in range(6)]
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Record()],
    )
    del model.log_dict
    trainer.fit(model, torch.utils.data.DataLoader(samples, batch_size=6))
    assert rates == pytest.approx([1.0, 1.0, 0.5005, 0.001], abs=1e-4)
    assert all(torch.equal(model.get_parameter(name), p) for name, p in frozen.items())
    assert bool(frozen) == (create is classifier_of)


@pytest.mark.parametrize("objective", ["selfcon", "one-stage"])
def test_a_few_steps_of_training_lower_the_loss(objective):
    torch.manual_seed(0)
    network = network_of((2,))
    if objective == "selfcon":
        model = SelfCon(network, SelfConLoss(), projection_dim=16)
    else:
        model = SelfConClassifier(network, 3, SelfConLoss())
    model = attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for step in range(15):
        loss = model.training_step(batch_of(), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
