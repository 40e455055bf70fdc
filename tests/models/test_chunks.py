"""Large batches in chunks: the gradient of the whole batch, at the memory of one chunk."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from mixco_lightly import (
    MixCoCollate,
    MixCoLoss,
    MultiExitBackbone,
    SelfConLoss,
    create_backbone,
)
from mixco_lightly.models import run_in_chunks
from mixco_lightly.models.selfcon import SelfCon, SelfConClassifier
from mixco_lightly.models.simclr import SimCLR

N, CHUNK = 10, 4  # chunks of 4, 3 and 3


def images_of(n=N, dtype=torch.float64):
    return torch.rand(n, 3, 16, 16, dtype=dtype, generator=torch.Generator().manual_seed(0))


def loss_of(features):
    """Depends on all pairs of rows, as a contrastive loss does."""
    z = nn.functional.normalize(features.double(), dim=1)
    return (z @ z.T / 0.2).logsumexp(dim=1).mean()


def gradients_of(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def count_images(module):
    """How many images each forward of a module has."""
    counts = []
    module.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    return counts


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_without_batchnorm_features_and_gradients_are_those_of_the_whole_batch(name):
    torch.manual_seed(0)
    whole = create_backbone(name, 16).double().train()
    assert not any(isinstance(part, nn.BatchNorm2d) for part in whole.modules())
    chunked = copy.deepcopy(whole)
    counts = count_images(chunked)
    expected, features = whole(images_of()), run_in_chunks(chunked, images_of(), CHUNK)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)
    loss_of(expected).backward()
    loss_of(features).backward()
    assert counts == [4, 3, 3, 3, 3, 4]  # the last chunk is repeated first
    torch.testing.assert_close(gradients_of(chunked), gradients_of(whole), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_with_batchnorm_and_drop_path_a_chunk_is_a_batch_of_its_own_and_is_counted_once(
    name, precision
):
    torch.manual_seed(0)
    plain = create_backbone(name, 16, drop_path_rate=0.5).train()
    chunked, images = copy.deepcopy(plain), images_of(dtype=torch.float32)
    ends = []
    for network, chunk_size in [(plain, 0), (chunked, CHUNK)]:
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=precision) if precision else nullcontext():
            if chunk_size:
                features = run_in_chunks(network, images, chunk_size)
            else:
                features = torch.cat([network(part) for part in images.tensor_split(3)])
            loss = loss_of(features)
        loss.backward()
        ends.append((features, torch.rand(())))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)
    torch.testing.assert_close(gradients_of(chunked), gradients_of(plain), rtol=0, atol=0)
    torch.testing.assert_close(dict(chunked.named_buffers()), dict(plain.named_buffers()))
    if name == "test_resnet":
        assert int(chunked.model.bn1.num_batches_tracked) == 3


@pytest.mark.parametrize("chunk_size", [0, N, N + 1])
def test_a_batch_that_is_no_larger_than_a_chunk_runs_once(chunk_size):
    network = create_backbone("test_resnet", 16)
    counts = count_images(network)
    run_in_chunks(network, images_of(dtype=torch.float32), chunk_size).sum().backward()
    assert counts == [N]


def most_images_alive(chunk_size):
    """Of how many images a layer's activations are in memory at once, in a step of N images."""
    torch.manual_seed(0)
    network = create_backbone("test_vit", 16)
    kept, alive = [], []

    def note(module, inputs, output):
        kept.append((StorageWeakRef(output.untyped_storage()), len(output)))
        alive.append(sum(count for storage, count in kept if not storage.expired()))

    network.model.blocks[0].mlp.fc1.register_forward_hook(note)
    loss_of(run_in_chunks(network, images_of(dtype=torch.float32), chunk_size)).backward()
    return max(alive)


def test_a_step_keeps_the_activations_of_one_chunk_only():
    assert most_images_alive(0) == N
    assert most_images_alive(CHUNK) == CHUNK


def create(name, chunk_size):
    torch.manual_seed(0)
    if name == "simclr":
        backbone = create_backbone("test_vit", 16)
        return SimCLR(backbone, MixCoLoss(0.5, 0.5), 16, chunk_size=chunk_size)
    network = MultiExitBackbone("test_convnext", 16, exits=(2,))
    if name == "classifier":
        return SelfConClassifier(network, 3, SelfConLoss(), chunk_size=chunk_size)
    options = {"supervised": False, "mix_criterion": MixCoLoss()}
    options |= {"batch_norm": True, "chunk_size": chunk_size}
    return SelfCon(network, SelfConLoss(), projection_dim=16, **options)


@pytest.mark.parametrize("name", ["simclr", "selfcon", "classifier"])
def test_a_step_in_chunks_is_that_of_the_whole_batch_with_views_mixtures_and_heads(name):
    samples = [([*images_of(2 * N).view(N, 2, 3, 16, 16)[i]], i % 3) for i in range(N)]
    batch = MixCoCollate((0, 1))(samples)
    results = []
    for chunk_size in (0, CHUNK):
        model = create(name, chunk_size).double().train()
        network = model.backbone if name == "simclr" else model.network
        counts = count_images(network)
        loss = model.training_step(batch, 0)
        loss.backward()
        assert (max(counts) <= CHUNK) == bool(chunk_size)
        results.append((loss.detach(), gradients_of(model), dict(model.named_buffers())))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-10)


@pytest.mark.slow
def test_compiled_networks_run_in_chunks_too():
    torch.compiler.reset()
    torch.manual_seed(0)
    plain = create_backbone("test_resnet", 16)
    compiled, images = copy.deepcopy(plain), images_of(8, torch.float32)
    compiled.compile(backend="aot_eager")
    for network in (plain, compiled):
        loss_of(run_in_chunks(network, images, CHUNK)).backward()
    torch.testing.assert_close(gradients_of(compiled), gradients_of(plain), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(compiled.named_buffers()), dict(plain.named_buffers()))
