"""i-Mix and Un-Mix: which images go through which encoder, in which order, with which loss."""

import copy
import math

import pytest
import torch

from mixco_lightly import IMixLoss, MixCollate, MixCoLoss, Mixer, UnMixLoss, create_backbone
from mixco_lightly.models.imix import IMixMoCo, IMixNPair
from mixco_lightly.models.moco import MoCo
from mixco_lightly.models.simclr import SimCLR
from tests.models.test_lightning_modules import attach, record_batch_sizes

N, QUEUE, DIM, TEMPERATURE = 6, 10, 16, 0.3


def create(method):
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", image_size=16)
    if method == "npair":
        return attach(IMixNPair(backbone, IMixLoss(TEMPERATURE), DIM))
    if method == "simclr":
        return attach(SimCLR(backbone, UnMixLoss(TEMPERATURE, 0.5), DIM))
    if method == "imix":
        criterion = IMixLoss(TEMPERATURE, memory_bank_size=(QUEUE, DIM))
        return attach(IMixMoCo(backbone, criterion, momentum=0.9))
    criterion = UnMixLoss(TEMPERATURE, 0.5, memory_bank_size=(QUEUE, DIM))
    return attach(MoCo(backbone, criterion, momentum=0.9))


def create_batch(mixer, views=(0,)):
    torch.manual_seed(1)
    samples = [([torch.rand(3, 16, 16), torch.rand(3, 16, 16)], i % 3) for i in range(N)]
    return MixCollate(mixer, views)(samples)


def train_step(model, batch):
    """Loss of a step before which the query encoder has moved, and a copy as it was before."""
    with torch.no_grad():  # so that the momentum update matters
        for parameter in model.backbone.parameters():
            parameter.mul_(1.5)
    twin = copy.deepcopy(model)
    return model.training_step(batch, 0), twin


def keys_of(twin, images):
    """Keys of the momentum encoder after its update."""
    with torch.no_grad():
        for encoder, ema in [
            (twin.backbone, twin.backbone_momentum),
            (twin.projection_head, twin.projection_head_momentum),
        ]:
            for new, old in zip(encoder.parameters(), ema.parameters(), strict=True):
                old.copy_(0.9 * old + 0.1 * new)
        return unit(twin.projection_head_momentum(twin.backbone_momentum(images)))


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=1)


def soft_cross_entropy(z, keys, queue, mixture):
    """i-Mix's loss, a mixture at a time."""
    total = 0.0
    for m, row in enumerate(z):
        logits = [float(row @ key) / TEMPERATURE for key in [*keys, *queue]]
        log_sum = math.log(sum(map(math.exp, logits)))
        lam, first, second = (float(x[m]) for x in (mixture.lam, mixture.first, mixture.second))
        total += log_sum - lam * logits[int(first)] - (1 - lam) * logits[int(second)]
    return total / len(z)


@pytest.mark.parametrize("mixer", [Mixer.imix(), Mixer.imix("cutmix"), Mixer.mixco()], ids=str)
def test_imix_loss_is_that_of_mixtures_alone_with_the_updated_encoders_keys_and_the_old_queue(
    mixer,
):
    batch = create_batch(mixer)
    (_, key_images), _, (mixture,) = batch
    model = create("imix")
    queries = record_batch_sizes(model.backbone)
    keys_sizes = record_batch_sizes(model.backbone_momentum)
    loss, twin = train_step(model, batch)
    assert queries == [len(mixture.images)]
    assert keys_sizes == [N]

    keys, queue = keys_of(twin, key_images), twin.criterion.queue.keys
    mixed = unit(twin.projection_head(twin.backbone(mixture.images))).detach()
    expected = soft_cross_entropy(mixed, keys, queue, mixture)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(model.criterion.queue.keys[:N], keys)
    assert int(model.criterion.queue.position) == N
    # The same in what it logs.
    first = mixture.first.tolist()
    positive = sum(float(z @ keys[i]) for z, i in zip(mixed, first, strict=True)) / len(first)
    logged = {name: float(value.detach()) for name, value in model.logged.items()}
    assert logged == {
        "loss": pytest.approx(float(loss.detach())),
        "lam": pytest.approx(float(mixture.lam.mean())),
        "positive_similarity": pytest.approx(positive, abs=1e-5),
        "negative_similarity": pytest.approx(float((mixed @ queue.T).mean()), abs=1e-5),
    }


def test_imix_gives_the_query_encoder_a_gradient_and_the_momentum_encoder_none():
    model = create("imix")
    train_step(model, create_batch(Mixer.imix()))[0].backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    assert all(parameter.grad is None for parameter in model.backbone_momentum.parameters())


def test_n_pair_runs_mixtures_and_keys_in_one_forward_and_both_get_a_gradient():
    batch = create_batch(Mixer.imix())
    (_, key_images), _, (mixture,) = batch
    model = create("npair")
    sizes = record_batch_sizes(model.backbone)
    loss, twin = train_step(model, batch)
    assert sizes == [2 * N]
    loss.backward()

    projections = unit(twin.projection_head(twin.backbone(torch.cat([mixture.images, key_images]))))
    mixed, keys = projections[:N], projections[N:]
    assert float(loss.detach()) == pytest.approx(
        soft_cross_entropy(mixed.detach(), keys.detach(), [], mixture), rel=1e-5
    )
    # In one expression, for the gradient to both.
    logits = mixed @ keys.T / TEMPERATURE
    target = torch.zeros(N, N)
    for m in range(N):
        target[m, mixture.first[m]] += mixture.lam[m]
        target[m, mixture.second[m]] += 1 - mixture.lam[m]
    torch.nn.functional.cross_entropy(logits, target).backward()
    for new, old in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(new.grad, old.grad, rtol=1e-3, atol=1e-5)
    assert {name: float(value.detach()) for name, value in model.logged.items()} == {
        "loss": pytest.approx(float(loss.detach())), "lam": pytest.approx(float(mixture.lam.mean()))
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mixer", "mixtures"), [(Mixer.unmix(), N), (Mixer.mixmask(), N), (Mixer.mixco(), N // 2)]
)
def test_unmix_on_moco_adds_each_sources_loss_alone_against_the_queue(mixer, mixtures):
    batch = create_batch(mixer)
    (query_images, key_images), _, (mixture,) = batch
    model = create("unmix")
    sizes = record_batch_sizes(model.backbone)
    loss, twin = train_step(model, batch)
    assert sizes == [N + mixtures]

    keys, queue = keys_of(twin, key_images), twin.criterion.queue.keys
    joint = torch.cat([query_images, mixture.images])
    z = unit(twin.projection_head(twin.backbone(joint))).detach()

    def info_nce(row, key):
        logits = [float(row @ other) / TEMPERATURE for other in [key, *queue]]
        return math.log(sum(map(math.exp, logits))) - logits[0]

    plain = sum(info_nce(row, key) for row, key in zip(z[:N], keys, strict=True)) / N
    mix = 0.0
    for row, first, second, lam in zip(z[N:], *mixture[1:], strict=True):
        mix += float(lam) * info_nce(row, keys[first])
        mix += (1 - float(lam)) * info_nce(row, keys[second])
    assert float(loss.detach()) == pytest.approx(plain + 0.5 * mix / mixtures, rel=1e-5)
    torch.testing.assert_close(model.criterion.queue.keys[:N], keys)


def test_unmix_on_simclr_mixes_both_views_at_half_weight_against_the_other_view():
    batch = create_batch(Mixer.unmix("cutmix"), (0, 1))
    (view0, view1), _, (mixture0, mixture1) = batch
    model = create("simclr")
    sizes = record_batch_sizes(model.backbone)
    loss, twin = train_step(model, batch)
    assert sizes == [N, N, N, N]
    z0, z1, mixed0, mixed1 = (
        twin.projection_head(twin.backbone(images))
        for images in (view0, view1, mixture0.images, mixture1.images)
    )
    criterion = UnMixLoss(TEMPERATURE)
    contrast, mix0 = criterion.forward_components(z0, z1, mixed0, mixture0)[1:]
    mix1 = criterion.forward_components(z1, z0, mixed1, mixture1).mix
    torch.testing.assert_close(loss, contrast + 0.5 * (mix0 + mix1) / 2)


def test_a_module_refuses_the_loss_of_another_and_says_which_it_needs():
    backbone, queue = create_backbone("test_resnet", image_size=16), (QUEUE, DIM)
    for module, criterion, error, message in [
        (MoCo, IMixLoss(memory_bank_size=queue), TypeError, "use IMixMoCo"),
        (SimCLR, IMixLoss(), TypeError, "use IMixNPair"),
        (IMixMoCo, MixCoLoss(memory_bank_size=queue), TypeError, "IMixLoss, got MixCoLoss"),
        (IMixNPair, UnMixLoss(), TypeError, "IMixLoss, got UnMixLoss"),
        (MoCo, UnMixLoss(), ValueError, "MoCo needs a loss with a queue"),
        (SimCLR, UnMixLoss(memory_bank_size=queue), ValueError, "without a queue"),
        (IMixMoCo, IMixLoss(), ValueError, "IMixMoCo needs a loss with a queue"),
        (IMixNPair, IMixLoss(memory_bank_size=queue), ValueError, "without a queue"),
    ]:
        with pytest.raises(error, match=message):
            module(backbone, criterion)
