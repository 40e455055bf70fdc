"""Losses, their gradients and their operators on the GPU are those of the CPU."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mixco_lightly import IMixLoss, KeyQueue, MixCoLoss, Mixture, SelfConLoss, UnMixLoss
from tests.gpu.conftest import DEVICE

N, DIM = 32, 64
QUEUED = ["moco", "imix", "unmix"]
FORMS = [*QUEUED, "simclr", "imix-npair", "unmix-simclr"]
FORMS += ["selfcon", "selfcon-labels", "selfcon-weighted"]
# Largest deviation from the CPU in float32, as a part of the largest value. bfloat16 has 8 bits,
# also in the products with the queue; float16 has 11, and its gradients are rounded only.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 3e-2}


def create_case(form, dtype=torch.float32):
    """A criterion on the CPU and its arguments, float32 values that dtype holds exactly."""
    generator = torch.Generator().manual_seed(0)

    def rows(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).float()

    torch.manual_seed(0)
    if form.startswith("selfcon"):
        weight = 0.5 if form == "selfcon-weighted" else None
        labels = torch.arange(N) % 4 if form == "selfcon-labels" else None
        return SelfConLoss(subnetwork_weight=weight), [rows(N, 3, DIM), labels]
    m = N // 2
    lam = torch.rand(m, generator=generator)
    first = torch.arange(m)
    mixture = Mixture(torch.zeros(m, 3, 2, 2), first, first + m, lam)
    size = (256, DIM) if form in QUEUED else 0
    out0, out1, mixed = rows(N, DIM), rows(N, DIM), rows(m, DIM)
    if form.startswith("imix"):
        return IMixLoss(memory_bank_size=size), [mixed, out1, mixture]
    parts = [out0, out1, mixed, mixture] if size else [out0, out1, mixed, mixture, rows(m, DIM)]
    parts += [] if size else [mixture]
    if form.startswith("unmix"):
        return UnMixLoss(memory_bank_size=size), parts
    settings = {} if size else {"temperature": 0.5, "mix_temperature": 0.5}
    return MixCoLoss(memory_bank_size=size, **settings), parts


def move(argument, dtype):
    """An argument on the GPU; projections in dtype, and with a gradient."""
    if isinstance(argument, Mixture):
        return argument.to(DEVICE)
    if argument is None or not argument.is_floating_point():
        return argument if argument is None else argument.to(DEVICE)
    return argument.to(DEVICE, dtype).requires_grad_()


def gradients(loss, arguments):
    inputs = [x for x in arguments if isinstance(x, torch.Tensor) and x.is_floating_point()]
    return torch.autograd.grad(loss, inputs, allow_unused=True)


def on_the_cpu(form, dtype):
    criterion, arguments = create_case(form, dtype)
    arguments = [
        x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in arguments
    ]
    loss = criterion(*arguments)
    return loss, gradients(loss, arguments), criterion


def assert_near(actual, expected, tolerance):
    assert torch.isfinite(actual).all()
    error = (actual.detach().cpu().float() - expected).abs().max()
    assert error <= tolerance * expected.abs().max(), f"off by {error}"


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "not moved"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_are_those_of_the_cpu(form, dtype, moved):
    expected, expected_gradients, reference = on_the_cpu(form, dtype)
    criterion, arguments = create_case(form, dtype)
    if moved:
        criterion = criterion.to(DEVICE)
    arguments = [move(argument, dtype) for argument in arguments]
    with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
        loss = criterion(*arguments)
    assert (loss.device.type, loss.dtype) == (DEVICE.type, torch.float32)
    assert_near(loss, expected.detach(), TOLERANCES[dtype])
    for actual, gradient in zip(gradients(loss, arguments), expected_gradients, strict=True):
        assert (actual is None) == (gradient is None)
        if actual is not None:
            assert_near(actual, gradient, TOLERANCES[dtype])
    if form in QUEUED:
        assert criterion.queue.keys.device.type == DEVICE.type
        assert_near(criterion.queue.keys, reference.queue.keys, 1e-6)
        assert int(criterion.queue.position) == int(reference.queue.position) == N


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_loss_and_gradient_are_right_at_extreme_temperatures(dtype):
    # Logits of 1,000: exp of them overflows, so the running maximum is needed.
    for memory_bank_size in (0, (256, DIM)):
        options = {"temperature": 1e-3, "mix_temperature": 1e-3}
        criterion = MixCoLoss(memory_bank_size=memory_bank_size, **options).to(DEVICE)
        _, (out0, out1, *_) = create_case("moco", dtype)
        out0 = out0.to(DEVICE, dtype).requires_grad_()
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            loss = criterion(out0, out1.to(DEVICE, dtype))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(out0.grad).all()


def test_a_criterion_that_was_not_moved_keeps_its_place_in_the_state_dict():
    criterion, arguments = create_case("moco")
    names = list(criterion.state_dict())
    for _ in range(3):
        criterion(*(move(argument, torch.float32) for argument in arguments)).backward()
    state = criterion.state_dict()
    assert list(state) == names == ["queue.keys", "queue.position"]
    assert state["queue.keys"].device.type == DEVICE.type
    assert int(state["queue.position"]) == 3 * N
    resumed, _ = create_case("moco")
    resumed.load_state_dict(state)
    losses = [
        c(*(move(argument, torch.float32) for argument in arguments)).item()
        for c in (criterion, resumed)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_queue_that_was_not_moved_follows_its_keys():
    queue = KeyQueue((8, DIM))
    keys = torch.nn.functional.normalize(torch.randn(12, DIM), dim=1)
    queue.enqueue(keys.to(DEVICE))
    assert queue.keys.device.type == queue.position.device.type == DEVICE.type
    assert int(queue.position) == 0
    assert_near(queue.keys, keys[-8:], 1e-6)


class Recorder(TorchDispatchMode):
    """Notes the calls of this package's operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "mixco_lightly":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["moco", "simclr", "unmix-simclr"])
def test_operators_keep_the_rules_of_torch_library(form, dtype):
    criterion, arguments = create_case(form, dtype)
    arguments = [move(argument, dtype) for argument in arguments]
    with (
        Recorder() as recorder,
        torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32),
    ):
        criterion.to(DEVICE)(*arguments)
    assert recorder.calls
    for operator, args, kwargs in recorder.calls:
        args = [
            x.detach().requires_grad_(x.is_floating_point()) if isinstance(x, torch.Tensor) else x
            for x in args
        ]
        # That of AOT dispatch differentiates the gradients, which is refused.
        rules = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(operator, tuple(args), kwargs, test_utils=rules)


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("moco", torch.float32),
        ("moco", torch.bfloat16),
        ("simclr", torch.bfloat16),
        ("imix", torch.bfloat16),
        ("unmix", torch.float32),
        ("unmix-simclr", torch.float32),
        ("selfcon-labels", torch.float32),
    ],
    ids=str,
)
def test_inductor_gives_the_loss_and_the_gradients_of_eager_mode(form, dtype):
    torch.compiler.reset()
    criterion, arguments = create_case(form, dtype)
    criterion = criterion.to(DEVICE)
    compiled = torch.compile(copy.deepcopy(criterion))
    for _ in range(2):  # the second time the queue has other keys
        results = []
        for call in (criterion, compiled):
            inputs = [move(argument, dtype) for argument in arguments]
            with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
                loss = call(*inputs)
            results.append((loss, gradients(loss, inputs)))
        (loss, grads), (compiled_loss, compiled_grads) = results
        assert_near(compiled_loss, loss.detach().cpu(), 1e-5)
        for actual, expected in zip(compiled_grads, grads, strict=True):
            assert (actual is None) == (expected is None)
            if actual is not None:
                tolerance = 1e-5 if dtype == torch.float32 else 1e-2  # a rounding of bfloat16
                assert_near(actual, expected.cpu().float(), tolerance)
