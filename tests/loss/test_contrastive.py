import math
import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from mixco_lightly import IMixLoss, MixCoLoss, Mixture, SelfConLoss, UnMixLoss
from mixco_lightly.loss import blockwise
from mixco_lightly.loss.blockwise import mean_cross_entropy, product, queue_logsumexp
from mixco_lightly.loss.contrastive import (
    key_cross_entropy,
    mixed_cross_entropy,
    mixed_nt_xent,
    nt_xent,
    unit_rows,
    weighted_key_cross_entropy,
)
from tests import reference
from tests.benchmarks.measure import peak_bytes
from tests.reference import draw_mixture, draw_problem, draw_rows

SEEDS = range(200)


def rows(n: int, dim: int, seed: int = 0, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, dtype=torch.float64, generator=generator).requires_grad_(grad)


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    lse = queue_logsumexp(queries / temperature, queue)
    return key_cross_entropy(queries, keys, temperature, lse)


# Values against loops


@pytest.mark.parametrize("seed", SEEDS)
def test_key_cross_entropy_equals_loop(seed: int) -> None:
    p = draw_problem(seed, with_queue=True)
    loss = info_nce(unit_rows(p.out0), unit_rows(p.out1), p.queue, p.temperature)
    expected = reference.info_nce(p.out0, p.out1, p.queue, p.temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("with_queue", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_mixed_cross_entropy_equals_loop(seed: int, with_queue: bool) -> None:
    rng = random.Random(seed)
    n, dim, temperature = rng.randint(2, 9), rng.randint(1, 17), rng.choice([1, 0.5, 0.2, 0.05])
    keys, queue = draw_rows(rng, n, dim), None
    mixed, (_, first, second, lam) = draw_mixture(rng, n, dim)
    z, lse = unit_rows(mixed), None
    if with_queue:
        queue = unit_rows(draw_rows(rng, rng.randint(1, 40), dim))
        lse = queue_logsumexp(z / temperature, queue)
    loss = mixed_cross_entropy(z, unit_rows(keys), first, second, lam, temperature, lse)
    expected = reference.mixed_cross_entropy(mixed, keys, first, second, lam, temperature, queue)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_nt_xent_equals_loop(seed: int) -> None:
    p = draw_problem(seed, with_queue=False)
    z0, z1 = unit_rows(p.out0), unit_rows(p.out1)
    loss = nt_xent(z0, z1, z0, z1, 0, p.temperature)
    expected = reference.nt_xent(p.out0, p.out1, p.temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_nt_xent_of_slices_with_their_offset_averages_to_the_whole(world_size: int) -> None:
    z0, z1 = unit_rows(rows(6, 5, seed=1)), unit_rows(rows(6, 5, seed=2))
    n = 6 // world_size
    losses = [nt_xent(z0[i : i + n], z1[i : i + n], z0, z1, i, 0.2).item() for i in range(0, 6, n)]
    expected = reference.nt_xent(z0, z1, 0.2)
    assert sum(losses) / world_size == pytest.approx(expected, abs=1e-9)


# unit_rows


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_unit_rows_have_length_one_in_float32_at_least(
    dtype: torch.dtype, result: torch.dtype
) -> None:
    x = rows(7, 5).to(dtype)
    z = unit_rows(x)
    assert z.dtype == result
    expected = torch.tensor(reference.units(x), dtype=torch.float64)
    eps = torch.finfo(result).eps
    torch.testing.assert_close(z.double(), expected, rtol=4 * eps, atol=0)


def test_unit_rows_of_float16_do_not_overflow() -> None:
    # 3e4 is a float16 number, its square is not.
    z = unit_rows(torch.tensor([[3e4, 4e4]], dtype=torch.float16))
    torch.testing.assert_close(z, torch.tensor([[0.6, 0.8]]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", [0.0, 1e-30, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_unit_row_without_direction_is_zero_with_zero_gradient(
    dtype: torch.dtype, norm: float
) -> None:
    x = torch.tensor([[norm, 0.0], [3.0, 4.0]], dtype=dtype, requires_grad=True)
    z = unit_rows(x)
    (z * torch.tensor([[1.0, 2.0], [3.0, 5.0]])).sum().backward()
    assert z[0].tolist() == [0.0, 0.0]
    assert x.grad[0].tolist() == [0.0, 0.0]
    # d(z.w)/dx = (w - (z.w) z) / |x| = ((3, 5) - 5.8 * (0.6, 0.8)) / 5
    torch.testing.assert_close(
        x.grad[1].double(),
        torch.tensor([-0.096, 0.072], dtype=torch.float64),
        rtol=0,
        atol=4 * torch.finfo(dtype).eps,
    )


def test_unit_row_of_length_1e_minus_5_has_its_direction() -> None:
    z = unit_rows(torch.tensor([[3e-6, -4e-6], [3e-5, 4e-5]]))
    torch.testing.assert_close(z, torch.tensor([[0.6, -0.8], [0.6, 0.8]]), rtol=1e-6, atol=0)


# Queue term


# 2048 is what the package has for few queries: 4101 keys are two whole chunks and a rest.
@pytest.mark.parametrize(
    ("chunk", "length"), [(1, 5), (3, 1), (3, 6), (3, 8), (7, 7), (7, 20), (2048, 4101)]
)
@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.01])
def test_streamed_queue_logsumexp_equals_logsumexp_with_its_gradient(
    chunk: int, length: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "_block_rows", lambda *_: chunk)
    queries = (unit_rows(rows(4, 6, seed=1)) / temperature).requires_grad_()
    queue = unit_rows(rows(length, 6, seed=2))
    weight = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)

    lse = queue_logsumexp(queries, queue)
    expected = torch.logsumexp(queries @ queue.T, dim=1)
    torch.testing.assert_close(lse, expected, rtol=1e-12, atol=1e-12)

    (grad,) = torch.autograd.grad(lse @ weight, queries)
    (expected_grad,) = torch.autograd.grad(expected @ weight, queries)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 2048])
@pytest.mark.parametrize("max_logit", [1.0, 20.0, 60.0, 61.0, 1000.0])
def test_queue_logsumexp_with_a_known_bound_is_exact_up_to_that_bound(
    max_logit: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "_block_rows", lambda *_: chunk)
    # Similarities at both ends of the range: with all of them at -60, exp is smallest.
    keys = unit_rows(rows(9, 6, seed=2))
    queries = torch.cat([unit_rows(rows(3, 6, seed=1)), keys[:1], -keys[:1]]) * max_logit
    for dtype, tolerance in [(torch.float64, 1e-12), (torch.float32, 3e-7)]:
        for queue in (keys, keys[:1].expand(9, 6)):
            q = queries.to(dtype).clone().requires_grad_()
            exact = q.detach().double().clone().requires_grad_()
            lse = queue_logsumexp(q, queue.to(dtype), max_logit)
            expected = torch.logsumexp(exact @ queue.to(dtype).double().T, dim=1)
            lse.sum().backward()
            expected.sum().backward()
            torch.testing.assert_close(
                lse.double(), expected, rtol=0, atol=tolerance * max(max_logit, 1)
            )
            torch.testing.assert_close(
                q.grad.double(), exact.grad, rtol=0, atol=10 * tolerance * max(max_logit, 1)
            )


def test_queue_logsumexp_in_bfloat16_is_right_to_a_hundredth_and_keeps_its_dtype() -> None:
    queue = unit_rows(rows(5000, 32, seed=2)).float()
    queries = (unit_rows(rows(6, 32, seed=1)).float() / 0.05).requires_grad_()
    lse = queue_logsumexp(queries, queue, 20.0, bfloat16=True)
    (grad,) = torch.autograd.grad(lse.sum(), queries)
    expected = queue_logsumexp(queries, queue, 20.0)
    (expected_grad,) = torch.autograd.grad(expected.sum(), queries)
    assert lse.dtype == grad.dtype == torch.float32
    assert not torch.equal(lse, expected)  # the products are rounded
    torch.testing.assert_close(lse, expected, rtol=1e-2, atol=0)
    assert (grad - expected_grad).norm() < 1e-2 * expected_grad.norm()


# The cross-entropy in the batch


@pytest.mark.parametrize("block", [1, 2, 3, 512])
@pytest.mark.parametrize("with_queue", [True, False])
@pytest.mark.parametrize("without_itself", [True, False])
@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
def test_mean_cross_entropy_in_blocks_equals_the_dense_one_with_its_gradients(
    scale: float,
    without_itself: bool,
    with_queue: bool,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blockwise, "_block_rows", lambda *_: block)
    q = (scale * unit_rows(rows(5, 4, seed=1))).requires_grad_()
    k = unit_rows(rows(7, 4, seed=2)).requires_grad_()
    target = rows(1, 5, seed=3)[0].requires_grad_()
    queue_lse = (scale * rows(1, 5, seed=4)[0]).requires_grad_() if with_queue else None
    itself = torch.tensor([6, 0, 2, 2, 4]) if without_itself else None

    logits = q @ k.T
    if itself is not None:
        logits = logits.scatter(1, itself.unsqueeze(1), -math.inf)
    if queue_lse is not None:
        logits = torch.cat([logits, queue_lse.unsqueeze(1)], dim=1)
    expected = (logits.logsumexp(dim=1) - target).mean()
    inputs = [x for x in (q, k, target, queue_lse) if x is not None]
    expected_grads = torch.autograd.grad(3 * expected, inputs)

    loss = mean_cross_entropy(q, k, target, itself, queue_lse)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for grad, expected_grad in zip(
        torch.autograd.grad(3 * loss, inputs), expected_grads, strict=True
    ):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("with_queue", [True, False])
def test_mean_cross_entropy_gradcheck_in_all_inputs(with_queue: bool) -> None:
    inputs = [rows(5, 4, seed=1, grad=True), rows(7, 4, seed=2, grad=True)]
    inputs.append(rows(1, 5, seed=3)[0].requires_grad_())
    if with_queue:
        inputs.append(rows(1, 5, seed=4)[0].requires_grad_())
    itself = torch.tensor([6, 0, 2, 2, 4])
    assert gradcheck(lambda q, k, t, *lse: mean_cross_entropy(q, k, t, itself, *lse), inputs)


@pytest.mark.parametrize("block", [2, 512])
@pytest.mark.parametrize("with_queue", [True, False])
def test_weighted_mean_cross_entropy_equals_the_sum_of_the_weighted_ones_with_its_gradients(
    with_queue: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "_block_rows", lambda *_: block)
    q, k = rows(5, 4, seed=1, grad=True), rows(7, 4, seed=2, grad=True)
    target = rows(1, 5, seed=3)[0].requires_grad_()
    queue_lse = rows(1, 5, seed=4)[0].requires_grad_() if with_queue else None
    weights = torch.tensor([0.5, 0.0, 0.25, 0.0, 0.25], dtype=torch.float64)
    inputs = [x for x in (q, k, target, queue_lse) if x is not None]

    loss = mean_cross_entropy(q, k, target, None, queue_lse, weights)
    each = [
        mean_cross_entropy(
            q[i, None], k, target[i, None], None, None if queue_lse is None else queue_lse[i, None]
        )
        for i in range(5)
    ]
    expected = torch.stack(each) @ weights
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(3 * loss, inputs)
    for grad, expected_grad in zip(grads, torch.autograd.grad(3 * expected, inputs), strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-12)


def test_product_with_a_constant_is_that_of_matrices_with_its_gradient() -> None:
    constant, x = rows(3, 5), rows(5, 4, seed=1, grad=True)
    torch.testing.assert_close(product(constant, x), constant @ x, rtol=0, atol=0)
    assert gradcheck(lambda x: product(constant, x), x)


# Precision of the products

# What a user can set, and the precision that it stands for.
FLOAT32_SETTINGS = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "cuda alone": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "mkldnn alone": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
}
BACKENDS = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


def precision_settings() -> list[str]:
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:  # only one of the newer settings was changed
        legacy = "inconsistent"
    return [legacy, *(backend.fp32_precision for backend in BACKENDS)]


@pytest.fixture(params=FLOAT32_SETTINGS)
def lowered_precision(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Allows less precise float32 products; gives the settings that were made."""
    before = [backend.fp32_precision for backend in BACKENDS]
    FLOAT32_SETTINGS[request.param]()
    yield precision_settings()
    torch.set_float32_matmul_precision("highest")
    for backend, precision in zip(BACKENDS, before, strict=True):
        backend.fp32_precision = precision


class Products(TorchDispatchMode):
    """Notes matrix products outside of this package's operators, whose bodies it cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "baddbmm"):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "form", ["moco", "simclr", "imix", "npair", "unmix", "unmix simclr", "selfcon", "supcon"]
)
def test_losses_multiply_in_full_precision_whatever_is_set_and_leave_the_setting(
    form: str, lowered_precision: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[list[str]] = []

    def spy(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def noted(*args: object, **kwargs: object) -> object:
            inside.append(precision_settings()[1:])
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    for owner, name in [(torch, "mm"), (Tensor, "__matmul__"), (Tensor, "addmm_")]:
        spy(owner, name)
    x = [rows(6, 4, seed=i).float().requires_grad_() for i in range(3)]
    with Products() as outside:
        if form in ("selfcon", "supcon"):
            exits = 2 if form == "selfcon" else 1
            loss = SelfConLoss()(torch.stack(x[:exits], dim=1), torch.tensor([0, 0, 1, 1, 2, 3]))
        else:
            size = (8, 4) if form in ("moco", "imix", "unmix") else 0
            create = {"imix": IMixLoss, "npair": IMixLoss, "moco": MixCoLoss, "simclr": MixCoLoss}
            criterion = create.get(form, UnMixLoss)(memory_bank_size=size)
            indices = torch.arange(6)
            mixture = Mixture(torch.empty(6, 0), indices, indices.flip(0), torch.rand(6))
            loss = criterion(*x[: 2 if isinstance(criterion, IMixLoss) else 3], mixture)
        loss.backward()
    assert len(inside) >= 2  # products of the forward
    assert all(settings == ["ieee", "ieee"] for settings in inside)
    assert outside.names == []
    assert precision_settings() == lowered_precision


def test_an_error_in_an_operator_leaves_the_precision_that_was_set(
    lowered_precision: list[str],
) -> None:
    with pytest.raises(RuntimeError, match="shape"):
        queue_logsumexp(torch.ones(2, 3), torch.ones(4, 5))
    assert precision_settings() == lowered_precision


@pytest.mark.parametrize("optional", [True, False])
def test_operators_keep_the_rules_of_torch_library(optional: bool) -> None:
    # That of AOT dispatch is left out: it differentiates the gradients, which is refused. What it
    # is for, torch.compile, has tests of its own.
    rules = ("test_schema", "test_autograd_registration", "test_faketensor")
    queries, keys = rows(3, 4, seed=1, grad=True), rows(5, 4, seed=2, grad=True)
    target = rows(1, 3, seed=3)[0].requires_grad_()
    itself = torch.tensor([0, 2, 4]) if optional else None
    queue_lse = rows(1, 3, seed=4)[0].requires_grad_() if optional else None
    weights = rows(1, 3, seed=5)[0] if optional else None
    torch.library.opcheck(
        blockwise._mean_cross_entropy,
        (queries, keys, target, itself, queue_lse, weights),
        test_utils=rules,
    )
    torch.library.opcheck(blockwise._product, (rows(3, 5, seed=6), keys), test_utils=rules)
    torch.library.opcheck(
        blockwise._queue_logsumexp,
        (queries, keys.detach(), 60.0 if optional else 61.0, False),
        test_utils=rules,
    )


@pytest.mark.parametrize("form", ["queue", "batch"])
def test_memory_stays_below_a_fifth_of_the_logits(form: str) -> None:
    if form == "queue":
        queries, queue = rows(64, 8, seed=1).float().requires_grad_(), rows(40_000, 8).float()
        logits_bytes = 4 * 64 * 40_000
        peak = peak_bytes(lambda: queue_logsumexp(queries, queue).sum().backward())
    else:
        z0, z1 = (rows(3000, 8, seed=i).float().requires_grad_() for i in (1, 2))
        logits_bytes = 4 * 6000 * 6000
        peak = peak_bytes(lambda: nt_xent(z0, z1, z0, z1, 0, 0.5).backward())
    assert 0 < peak < logits_bytes / 5


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_streamed_queue_logsumexp_is_finite_when_chunks_differ_by_exp_2000(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the running maximum, exp(1000) overflows and exp(-1000) is 0.
    monkeypatch.setattr(blockwise, "_block_rows", lambda *_: 2)
    similarity = torch.linspace(-1, 1, 9, dtype=torch.float64)
    queue = (similarity if order == "rising" else similarity.flip(0)).unsqueeze(1)
    query = torch.tensor([[1000.0], [-1000.0]], dtype=torch.float64, requires_grad=True)
    lse = queue_logsumexp(query, queue)
    lse.sum().backward()
    # The largest logit is 1000, the next one is 250 below it.
    assert lse.tolist() == [1000.0, 1000.0]
    assert query.grad.flatten().tolist() == [1.0, -1.0]


@pytest.mark.parametrize("chunk", [1, 3, 7, 2048])
def test_queue_logsumexp_is_invariant_to_the_order_of_the_queue(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "_block_rows", lambda *_: chunk)
    queries, queue = rows(3, 4, seed=1), rows(20, 4, seed=2)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        queue_logsumexp(queries, queue[order]), queue_logsumexp(queries, queue), rtol=0, atol=1e-12
    )


def test_queue_logsumexp_gradient_survives_overwriting_the_queue() -> None:
    queries, queue = rows(3, 4, seed=1, grad=True), rows(5, 4, seed=2)
    (expected,) = torch.autograd.grad(torch.logsumexp(queries @ queue.T, dim=1).sum(), queries)
    lse = queue_logsumexp(queries, queue)
    queue.zero_()
    lse.sum().backward()
    torch.testing.assert_close(queries.grad, expected, rtol=0, atol=1e-12)


def test_queue_logsumexp_gives_the_queue_no_gradient_and_takes_any_dtype() -> None:
    queries = rows(3, 4, seed=1, grad=True)
    queue = rows(5, 4, seed=2).float().requires_grad_()
    lse = queue_logsumexp(queries, queue)
    lse.sum().backward()
    assert lse.dtype == torch.float64
    assert queue.grad is None
    expected = torch.logsumexp(queries @ queue.double().T, dim=1)
    torch.testing.assert_close(lse, expected, rtol=1e-12, atol=1e-12)


# Gradients


@pytest.mark.parametrize("chunk", [2, 2048])
def test_queue_logsumexp_gradcheck(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "_block_rows", lambda *_: chunk)
    queue = unit_rows(rows(5, 4, seed=2))
    assert gradcheck(lambda q: queue_logsumexp(q, queue), (rows(3, 4, seed=1, grad=True),))


def test_unit_rows_gradcheck() -> None:
    assert gradcheck(unit_rows, (rows(3, 4, grad=True),))


def test_key_cross_entropy_gradcheck_in_queries_keys_and_queue_term() -> None:
    lse = torch.tensor([0.5, 1.5, -1.0], dtype=torch.float64, requires_grad=True)
    inputs = (rows(3, 4, seed=1, grad=True), rows(3, 4, seed=2, grad=True), lse)
    assert gradcheck(lambda q, k, lse: key_cross_entropy(q, k, 0.2, lse), inputs)


def test_info_nce_gradcheck_through_the_queue() -> None:
    queue = unit_rows(rows(5, 4, seed=3))
    inputs = (rows(3, 4, seed=1, grad=True), rows(3, 4, seed=2, grad=True))
    assert gradcheck(lambda q, k: info_nce(q, k, queue, 0.5), inputs)


@pytest.mark.parametrize("with_queue", [True, False])
def test_mixed_cross_entropy_gradcheck_in_queries_and_keys(with_queue: bool) -> None:
    first, second = torch.tensor([0, 3]), torch.tensor([2, 4])
    lam, queue = torch.tensor([0.3, 0.9]), unit_rows(rows(5, 4, seed=3))

    def loss(q: Tensor, k: Tensor) -> Tensor:
        lse = queue_logsumexp(q / 0.5, queue) if with_queue else None
        return mixed_cross_entropy(q, k, first, second, lam, 0.5, lse)

    assert gradcheck(loss, (rows(2, 4, seed=1, grad=True), rows(5, 4, seed=2, grad=True)))


def test_nt_xent_gradcheck_in_own_and_in_gathered_rows() -> None:
    inputs = tuple(rows(n, 3, seed=n + i, grad=True) for i, n in enumerate([2, 2, 6, 6]))
    assert gradcheck(lambda a, b, c, d: nt_xent(a, b, c, d, 2, 0.5), inputs)


def test_nt_xent_gradcheck_on_one_process() -> None:
    inputs = (rows(3, 4, seed=1, grad=True), rows(3, 4, seed=2, grad=True))
    assert gradcheck(lambda a, b: nt_xent(a, b, a, b, 0, 0.5), inputs)


def test_weighted_key_cross_entropy_gradcheck_in_queries_keys_and_queue_term() -> None:
    first, second = torch.tensor([0, 3, 0]), torch.tensor([2, 4, 0])
    lam = torch.tensor([0.3, 0.9, 1.0], dtype=torch.float64)
    lse = torch.tensor([0.5, 1.5, -1.0], dtype=torch.float64, requires_grad=True)
    inputs = (rows(3, 4, seed=1, grad=True), rows(5, 4, seed=2, grad=True), lse)
    assert gradcheck(
        lambda q, k, lse: weighted_key_cross_entropy(q, k, first, second, lam, 0.2, lse), inputs
    )


def test_mixed_nt_xent_gradcheck_in_own_and_in_gathered_rows() -> None:
    first, second = torch.tensor([2, 3]), torch.tensor([3, 2])
    lam = torch.tensor([0.3, 0.9], dtype=torch.float64)
    inputs = tuple(rows(n, 3, seed=n + i, grad=True) for i, n in enumerate([2, 5, 4]))
    assert gradcheck(lambda a, k, b: mixed_nt_xent(a, k, b, first, second, lam, 2, 0.5), inputs)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_mixed_nt_xent_of_slices_with_their_offset_averages_to_the_whole(world_size: int) -> None:
    m, n = 2, 4
    mixed, keys = (unit_rows(rows(world_size * k, 3, seed=k)) for k in (m, n))
    first, second = torch.arange(world_size * m), torch.arange(world_size * m).flip(0) + 1
    lam = torch.rand(world_size * m, generator=torch.Generator().manual_seed(0)).double()
    parts = [
        mixed_nt_xent(mixed[own], keys, mixed, first[own], second[own], lam[own], own.start, 0.5)
        for own in (slice(rank * m, (rank + 1) * m) for rank in range(world_size))
    ]
    expected = reference.mixed_nt_xent(mixed, keys, first, second, lam, 0.5)
    assert torch.stack(parts).mean().item() == pytest.approx(expected, rel=1e-9)


# The queue term keeps only its first derivative, so a second one would be wrong without a word.
# In "sum" the incoming gradient is constant: autograd alone would take the result for a constant.
SECOND_DERIVATIVES = {
    "square": lambda q, lse: (lse**2).sum(),
    "sum": lambda q, lse: lse.sum(),
    "sum and another term": lambda q, lse: lse.sum() + (q**3).sum(),
}


@pytest.mark.parametrize("form", SECOND_DERIVATIVES)
def test_second_derivative_of_queue_logsumexp_raises(form: str) -> None:
    queries, queue = rows(3, 4, seed=1, grad=True), rows(5, 4, seed=2)
    value = SECOND_DERIVATIVES[form](queries, queue_logsumexp(queries, queue))
    with pytest.raises(RuntimeError):  # noqa: PT012, either of the two steps may raise
        (grad,) = torch.autograd.grad(value, queries, create_graph=True)
        torch.autograd.grad((grad**2).sum(), queries)


@pytest.mark.parametrize("loss", ["nt_xent", "mixed"])
def test_second_derivative_of_the_cross_entropies_in_the_batch_raises(loss: str) -> None:
    a, b = rows(4, 3, seed=1, grad=True), rows(4, 3, seed=2, grad=True)
    pair = torch.tensor([0, 1]), torch.tensor([2, 3])
    value = (
        nt_xent(a, b, a, b, 0, 0.5)
        if loss == "nt_xent"
        else mixed_cross_entropy(a[:2], b, *pair, torch.tensor([0.3, 0.8]), 0.5)
    )
    with pytest.raises(RuntimeError, match="only once"):  # noqa: PT012, either step may raise
        (grad,) = torch.autograd.grad(value, a, create_graph=True)
        torch.autograd.grad((grad**2).sum(), a)


def test_second_derivative_of_key_cross_entropy_raises() -> None:
    queries, keys, queue = rows(3, 4, seed=1, grad=True), rows(3, 4, seed=2), rows(5, 4, seed=3)
    loss = info_nce(queries, keys, queue, 0.5)
    with pytest.raises(RuntimeError):  # noqa: PT012, either of the two steps may raise
        (grad,) = torch.autograd.grad(loss, queries, create_graph=True)
        torch.autograd.grad((grad**2).sum(), queries)


# Exact values


def test_key_cross_entropy_of_hand_set_vectors() -> None:
    queries = torch.eye(3, dtype=torch.float64)[:2]
    queue = torch.tensor([[0, 0, 1.0], [-1.0, 0, 0]], dtype=torch.float64)
    # T = 1/2, each query is its own key: logit 1 / T = 2.
    # Query e0 against the queue: e0.e2 / T = 0, -e0.e0 / T = -2. Query e1: 0 and 0.
    expected = (math.log(math.exp(2) + 1 + math.exp(-2)) - 2 + math.log(math.exp(2) + 2) - 2) / 2
    assert info_nce(queries, queries, queue, 0.5).item() == pytest.approx(expected, abs=1e-12)


def test_mixed_cross_entropy_of_hand_set_vectors() -> None:
    z = torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64)
    keys = torch.eye(3, dtype=torch.float64)[:2]
    queue = torch.tensor([[0, 0, 1.0], [-1.0, 0, 0]], dtype=torch.float64)
    first, second, lam = torch.tensor([0]), torch.tensor([1]), torch.tensor([0.25])
    # T = 1/5: keys 0.6 / T = 3 and 0.8 / T = 4; queue 0 and -3. Target 1/4 and 3/4.
    lse = queue_logsumexp(z / 0.2, queue)
    loss = mixed_cross_entropy(z, keys, first, second, lam, 0.2, lse).item()
    expected = math.log(math.exp(3) + math.exp(4) + 1 + math.exp(-3)) - (3 / 4 + 4 * 3 / 4)
    assert loss == pytest.approx(expected, abs=1e-12)
    loss = mixed_cross_entropy(z, keys, first, second, lam, 0.2).item()
    expected = math.log(math.exp(3) + math.exp(4)) - (3 / 4 + 4 * 3 / 4)
    assert loss == pytest.approx(expected, abs=1e-12)


def test_nt_xent_of_hand_set_vectors() -> None:
    e0, e1 = [1.0, 0.0], [0.0, 1.0]
    z0 = torch.tensor([e0, e1], dtype=torch.float64)
    z1 = torch.tensor([e0, [-1.0, 0.0]], dtype=torch.float64)
    # T = 1/2. Anchors, positive first:
    # z0[0] =  e0: z1[0] =  2, z0[1] = 0, z1[1] = -2      z1[0] the same
    # z0[1] =  e1: z1[1] =  0, z0[0] = 0, z1[0] =  0
    # z1[1] = -e0: z0[1] =  0, z0[0] = -2, z1[0] = -2
    aligned = math.log(math.exp(2) + 1 + math.exp(-2)) - 2
    expected = (2 * aligned + math.log(3) + math.log(1 + 2 * math.exp(-2))) / 4
    assert nt_xent(z0, z1, z0, z1, 0, 0.5).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("exponent", [-4, 0, 15, 25, 38])
def test_unit_rows_and_their_gradient_do_not_depend_on_the_length_of_the_rows(exponent):
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(4, 5, dtype=torch.float64), dim=1)
    weights = torch.randn(4, 5, dtype=torch.float64)
    length = 10.0**exponent
    long = (x * length).float().requires_grad_()
    (unit_rows(long) * weights).sum().backward()
    torch.testing.assert_close(unit_rows(long).double(), x, rtol=1e-6, atol=1e-6)
    # d(x / |x|) = (1 - x x^T) / length
    expected = weights - (weights * x).sum(dim=1, keepdim=True) * x
    torch.testing.assert_close(long.grad.double() * length, expected, rtol=1e-5, atol=1e-5)
