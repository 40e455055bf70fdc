"""Losses and the queue on the pretended GPU, moved to it or not: Lightly's need not be moved."""

import pytest
import torch

from mixco_lightly import IMixLoss, KeyQueue, MixCoLoss, SelfConLoss, UnMixLoss, mix_pairs
from tests.pretended_gpu import pretended_gpu

MIXTURE_LOSSES = {"moco": MixCoLoss, "simclr": MixCoLoss, "imix": IMixLoss, "npair": IMixLoss}
MIXTURE_LOSSES |= {"unmix": UnMixLoss, "unmix simclr": UnMixLoss}
CASES = [*MIXTURE_LOSSES, "selfcon", "supcon", "selfcon star", "selfcon without labels"]


def create(case):
    torch.manual_seed(0)
    if case in MIXTURE_LOSSES:
        has_queue = case in ("moco", "imix", "unmix")
        return MIXTURE_LOSSES[case](memory_bank_size=(10, 4) if has_queue else 0)
    return SelfConLoss(subnetwork_weight=0.5 if case == "selfcon star" else None)


def inputs_of(case):
    """Two batches of arguments: projections, mixtures' projections, the mixtures, or labels."""
    torch.manual_seed(1)
    for _ in range(3):
        if case in ("imix", "npair"):
            yield [torch.randn(3, 4), torch.randn(6, 4), mixture()]
        elif case in ("moco", "unmix"):
            yield [torch.randn(6, 4), torch.randn(6, 4), torch.randn(3, 4), mixture()]
        elif case in ("simclr", "unmix simclr"):
            mixed = [torch.randn(3, 4), mixture(), torch.randn(3, 4), mixture()]
            yield [torch.randn(6, 4), torch.randn(6, 4), *mixed]
        else:
            labels = [] if case == "selfcon without labels" else [torch.tensor([0, 1, 2, 0, 1, 1])]
            yield [torch.randn(6, 1 if case == "supcon" else 2, 4), *labels]


def mixture():
    return mix_pairs(torch.rand(6, 3, 2, 2))


def leaf(x):
    return x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def step(criterion, arguments):
    """The loss, and its gradients for all projections."""
    arguments = [leaf(x) for x in arguments]
    loss = criterion(*arguments)
    loss.backward()
    return [loss.detach(), *(x.grad for x in arguments if getattr(x, "grad", None) is not None)]


@pytest.mark.parametrize("is_moved", [True, False], ids=["moved", "not moved"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_on_a_gpu_are_those_on_the_cpu_without_waits(case, is_moved):
    plain = create(case)
    expected = [step(plain, arguments) for arguments in inputs_of(case)]
    criterion = create(case)
    with pretended_gpu() as gpu:
        if is_moved:
            criterion.to("cuda")
            gpu.waits.clear()
        actual = []
        for count, arguments in enumerate(inputs_of(case)):
            if count == 1:
                gpu.waits.clear()  # a queue that was not moved may wait once, when it moves itself
            moved = [
                x.to("cuda", non_blocking=True) if isinstance(x, torch.Tensor) else x.to("cuda")
                for x in arguments
            ]
            actual.append([gpu.values(x) for x in step(criterion, moved)])
        assert gpu.waits == []
        state = {name: gpu.values(x) for name, x in criterion.state_dict().items()}
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(state, dict(plain.state_dict()))
    assert list(state) == list(plain.state_dict())


@pytest.mark.parametrize("is_moved", [True, False], ids=["moved", "not moved"])
def test_a_queue_on_a_gpu_keeps_the_keys_that_it_keeps_on_the_cpu(is_moved):
    torch.manual_seed(0)
    plain, batches = KeyQueue((5, 4)), torch.randn(3, 3, 4)
    torch.manual_seed(0)
    queue = KeyQueue((5, 4))
    for keys in batches:
        plain.enqueue(keys)
    with pretended_gpu() as gpu:
        if is_moved:
            queue.to("cuda")
        for keys in batches:
            keys = keys.to("cuda", non_blocking=True)
            queue.enqueue(keys)
        assert queue.keys.device == queue.position.device == torch.device("cuda", 0)
        assert torch.equal(gpu.values(queue.keys), plain.keys)
        before = plain.keys_before(batches[-1])
        assert torch.equal(gpu.values(queue.keys_before(keys)), before)
        assert int(queue.position) == int(plain.position)


def test_a_queue_on_a_gpu_is_looked_at_once_in_a_hundred_steps():
    with pretended_gpu() as gpu:
        queue = KeyQueue((8, 4)).to("cuda")
        keys = torch.randn(3, 4, device="cuda")
        gpu.waits.clear()
        for _ in range(99):
            queue.enqueue(keys)
        assert gpu.waits == []
        queue.enqueue(keys)
        assert len(gpu.waits) == 1
