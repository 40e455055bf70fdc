"""compile: what the modules call is compiled, and a copy calls its own loss."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from mixco_lightly import IMixLoss, MixCoLoss, UnMixLoss, mix_pairs


def batch_of():
    generator = torch.Generator().manual_seed(0)
    out0, out1 = (torch.randn(6, 8, generator=generator) for _ in range(2))
    mixture = mix_pairs(torch.rand(6, 1, 2, 2, generator=generator), generator=generator)
    return (
        out0.requires_grad_(),
        out1,
        torch.randn(3, 8, generator=generator).requires_grad_(),
        mixture,
    )


@pytest.mark.parametrize(
    ("loss", "memory_bank_size", "method"),
    [
        (MixCoLoss, 0, "forward_components"),
        (MixCoLoss, 0, "__call__"),
        (MixCoLoss, (16, 8), "forward_components"),
        (MixCoLoss, (16, 8), "__call__"),
        (UnMixLoss, (16, 8), "__call__"),
        (IMixLoss, (16, 8), "__call__"),
    ],
)
def test_compile_makes_a_graph_of_the_loss_however_it_is_called(loss, memory_bank_size, method):
    torch.compiler.reset()
    criterion = loss(memory_bank_size=memory_bank_size)
    twin, names = copy.deepcopy(criterion), criterion.state_dict().keys()
    backend = CompileCounterWithBackend("aot_eager")
    criterion.compile(backend=backend)
    assert criterion.state_dict().keys() == names
    for _ in range(2):
        out0, out1, mixed, mixture = batch_of()
        batch = (mixed, out1, mixture) if loss is IMixLoss else (out0, out1, mixed, mixture)
        value, expected = (getattr(one, method)(*batch) for one in (criterion, twin))
        torch.testing.assert_close(value, expected)
    assert backend.frame_count > 0
    if memory_bank_size:
        assert torch.equal(criterion.queue.keys, twin.queue.keys)


@pytest.mark.parametrize("loss", [MixCoLoss, IMixLoss])
def test_a_copy_of_a_compiled_loss_has_a_queue_of_its_own(loss):
    torch.compiler.reset()
    criterion = loss(memory_bank_size=(16, 8))
    criterion.compile(backend="eager")
    before = criterion.queue.keys.clone()
    twin = copy.deepcopy(criterion)
    out0, out1, mixed, mixture = batch_of()
    if loss is MixCoLoss:
        twin.forward_components(out0, out1, mixed, mixture)
    else:
        twin(mixed, out1, mixture)
    assert torch.equal(criterion.queue.keys, before)
    assert int(twin.queue.position) == 6
