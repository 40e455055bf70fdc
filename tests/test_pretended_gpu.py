"""The pretended GPU finds what is planted: each kind of wait, and each mix of devices."""

import copy
import os

import pytest
import torch
from torch import nn

from tests.pretended_gpu import pretended_gpu


@torch.library.custom_op("pretended_gpu::planted", mutates_args=())
def planted(x: torch.Tensor, fault: str) -> torch.Tensor:
    if fault == "device":
        return x + torch.ones(len(x))
    if fault == "wait":
        return x * float(x.sum())
    return x + torch.arange(len(x), device=x.device)


@planted.register_fake
def _(x, fault):
    return torch.empty_like(x)


planted.register_autograd(lambda ctx, grad: (grad, None))

WAITS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "int": lambda x: int(x.argmax()),
    "float": lambda x: float(x.sum()),
    "if": lambda x: 1 if (x > 0).all() else 0,
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "read by a mask": lambda x: x[x > 0],
    "write by a mask": lambda x: x.index_put_([x > 0], x[:1].repeat(int(x.inner.gt(0).sum()))),
    "index from the CPU": lambda x: x[torch.tensor([0, 1])],
    "index from a list": lambda x: x[[0, 1]],
    "linalg": lambda x: torch.linalg.inv(x.diag()),
    "to the CPU": lambda x: x.to("cpu"),
    "cpu": lambda x: x.cpu(),
    "tolist": lambda x: x.tolist(),
    "write to a CPU tensor": lambda x: torch.zeros(3).copy_(x),
    "to the GPU": lambda x: torch.zeros(3).to("cuda"),
    "to one on the GPU": lambda x: torch.zeros(3).to(x),
    "type_as": lambda x: torch.zeros(3).type_as(x),
    "cuda": lambda x: torch.zeros(3).cuda(),
    "write from a CPU tensor": lambda x: x.copy_(torch.zeros(3)),
    "a slice from a CPU tensor": lambda x: x.__setitem__(slice(2), torch.zeros(2)),
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "in a custom operator": lambda x: planted(x, "wait"),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_planted_wait_is_counted_with_its_line(name):
    with pretended_gpu() as gpu:
        x = torch.tensor([1.0, 2.0, -1.0]).to("cuda", non_blocking=True)
        assert gpu.waits == []
        WAITS[name](x)
    (wait,) = gpu.waits
    assert f" at tests{os.sep}test_pretended_gpu.py:" in wait


def test_work_on_the_device_is_no_wait():
    with pretended_gpu() as gpu:
        x = torch.tensor([1.0, 2.0, -1.0]).to("cuda", non_blocking=True)
        x = x[torch.arange(2, device="cuda")] + torch.tensor(2.0) + torch.ones(2, device=x.device)
        x[x > 4] = 0
        x[0] = 1
        x += torch.where(x > 0, x, -x).sort().values.cumsum(0).flip(0)
        planted(x, "")
        assert x.shape == (2,)
        assert len(x.to(torch.float64).double().to("cuda").view(-1, 1)) == 2
    assert gpu.waits == []


MIXES = {
    "add": lambda x: x + torch.ones(3),
    "cat": lambda x: torch.cat([x, torch.ones(1)]),
    "stack": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "matmul": lambda x: x @ torch.ones(3),
    "out": lambda x: torch.add(x, x, out=torch.empty(3)),
    "add to a CPU number": lambda x: torch.tensor(1.0).add_(x.sum()),
    "CPU tensor by a GPU index": lambda x: torch.ones(3)[x.argsort()],
    "index_select": lambda x: torch.ones(3).index_select(0, x.argsort()),
    "layer": lambda x: nn.Linear(3, 1)(x),
    "in a custom operator": lambda x: planted(x, "device"),
}


@pytest.mark.parametrize("name", MIXES)
def test_a_planted_mix_of_devices_raises(name):
    with pretended_gpu() as gpu:
        x = torch.tensor([1.0, 2.0, -1.0]).to("cuda", non_blocking=True)
        with pytest.raises(RuntimeError, match="same device"):
            MIXES[name](x)
    assert gpu.waits == []


def test_a_generator_of_the_cpu_and_an_early_read_raise():
    with pretended_gpu():
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(2, generator=torch.Generator(), device="cuda")
        with pytest.raises(RuntimeError, match="too early"):
            torch.zeros(2, device="cuda").to("cpu", non_blocking=True)


@pytest.mark.parametrize(
    "create",
    [lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), torch.optim.Adam],
    ids=["SGD", "Adam"],
)
def test_a_network_trains_as_on_the_cpu_bit_by_bit_without_waits(create):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    images, targets = torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 1, 0, 1])

    def train(network, images, targets):
        optimizer = create(network.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), targets).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()

    twin = copy.deepcopy(network)
    train(network, images, targets)
    with pretended_gpu() as gpu:
        twin.to("cuda")
        assert {tensor.device.type for tensor in twin.state_dict().values()} == {"cuda"}
        twin = copy.deepcopy(twin)
        images, targets = (x.to("cuda", non_blocking=True) for x in (images, targets))
        gpu.waits.clear()
        train(twin, images, targets)
        assert gpu.waits == []
        assert twin[0].weight.grad.device == torch.device("cuda", 0)
        state = {name: gpu.values(tensor) for name, tensor in twin.state_dict().items()}
    assert all(torch.equal(state[name], x) for name, x in network.state_dict().items())


def test_the_gradient_of_a_custom_operator_arrives():
    with pretended_gpu() as gpu:
        x = torch.zeros(3, device="cuda", requires_grad=True)
        planted(x, "").sum().backward()
        assert gpu.values(x.grad).tolist() == [1, 1, 1]
        assert gpu.waits == []


def test_the_device_has_random_numbers_of_its_own_that_a_seed_makes_the_cpus():
    torch.manual_seed(3)
    expected = torch.rand(4)
    with pretended_gpu() as gpu:
        torch.manual_seed(3)
        state = torch.get_rng_state()
        assert torch.equal(gpu.values(torch.rand(2, device="cuda")), expected[:2])
        assert torch.equal(torch.get_rng_state(), state)
        with torch.random.fork_rng(devices=[0], device_type="cuda"):
            torch.manual_seed(5)
            torch.rand(1, device="cuda")
        assert torch.equal(gpu.values(torch.rand(2, device="cuda")), expected[2:])
        generator = torch.Generator(device="cuda").manual_seed(3)
        drawn = torch.rand(4, device="cuda", generator=generator)
        assert torch.equal(gpu.values(drawn), expected)


def test_nothing_of_it_is_left_outside():
    before = torch.cuda.is_available(), torch.Generator, torch.accelerator.is_available()
    with pretended_gpu():
        x = torch.zeros(3, device="cuda")
        assert torch.cuda.is_available()
    assert (torch.cuda.is_available(), torch.Generator, torch.accelerator.is_available()) == before
    with pytest.raises(RuntimeError, match="switched off"):
        x + 1
