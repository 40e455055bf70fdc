"""MixCoLoss.compile: what the modules call is compiled, and a copy calls its own loss."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from mixco_lightly import MixCoLoss, mix_pairs


def batch_of():
    generator = torch.Generator().manual_seed(0)
    out0, out1 = (torch.randn(6, 8, generator=generator) for _ in range(2))
    mixture = mix_pairs(torch.rand(6, 1, 2, 2, generator=generator), generator=generator)
    return out0.requires_grad_(), out1, torch.randn(3, 8, generator=generator), mixture


@pytest.mark.parametrize("memory_bank_size", [0, (16, 8)])
@pytest.mark.parametrize("method", ["forward_components", "__call__"])
def test_compile_makes_a_graph_of_the_loss_however_it_is_called(memory_bank_size, method):
    torch.compiler.reset()
    criterion = MixCoLoss(memory_bank_size=memory_bank_size)
    twin, names = copy.deepcopy(criterion), criterion.state_dict().keys()
    backend = CompileCounterWithBackend("aot_eager")
    criterion.compile(backend=backend)
    assert criterion.state_dict().keys() == names
    for _ in range(2):
        loss, expected = (getattr(one, method)(*batch_of()) for one in (criterion, twin))
        torch.testing.assert_close(loss, expected)
    assert backend.frame_count > 0
    if memory_bank_size:
        assert torch.equal(criterion.queue.keys, twin.queue.keys)


def test_a_copy_of_a_compiled_loss_has_a_queue_of_its_own():
    torch.compiler.reset()
    criterion = MixCoLoss(memory_bank_size=(16, 8))
    criterion.compile(backend="eager")
    before = criterion.queue.keys.clone()
    twin = copy.deepcopy(criterion)
    twin.forward_components(*batch_of())
    assert torch.equal(criterion.queue.keys, before)
    assert int(twin.queue.position) == 6
