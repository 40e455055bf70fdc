"""What the losses of mixtures share: queue, precision, devices, compile, checkpointing."""

import copy
import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import mixco_lightly.machine as machine
from mixco_lightly import IMixLoss, Mixture, UnMixLoss
from mixco_lightly.loss import queue_loss
from tests import reference
from tests.loss.problems import (
    CASES,
    LOSSES,
    ROWS_ARE,
    TEMPERATURES,
    arguments_of,
    criterion_in_float32,
    criterion_of,
    expected_of,
    gradients,
    leaves,
    problem,
    rounded_problem,
)
from tests.reference import Problem

NEW = [case for case in CASES if case[0] != "mixco"]


def value(p: Problem, loss: str, **changes: object) -> float:
    return criterion_of(p, loss, **changes)(*arguments_of(p, loss)).item()


def in_training(p: Problem, loss: str) -> list[Tensor | Mixture | None]:
    """The arguments, of which the query has a gradient."""
    query, *others = arguments_of(p, loss)
    return [query.clone().requires_grad_(), *others]


# Identities


@pytest.mark.parametrize(("loss", "form"), CASES)
def test_scaling_each_projection_by_a_positive_factor_changes_nothing(loss: str, form: str) -> None:
    p = problem(form)
    factors = torch.tensor([[1e-3], [1e3], [0.5], [7.0], [2.0]], dtype=torch.float64)
    scaled = p._replace(
        out0=p.out0 * factors,
        out1=p.out1 * factors.flip(0),
        mixed0=p.mixed0 * factors[:2],
        mixed1=p.mixed1 if p.mixed1 is None else p.mixed1 * factors[:3],
    )
    assert value(scaled, loss) == pytest.approx(value(p, loss), abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_permuting_the_queue_changes_nothing(loss: str) -> None:
    p = problem("moco")
    permuted = p._replace(queue=p.queue[[3, 1, 6, 0, 5, 2, 4]])
    assert value(permuted, loss) == pytest.approx(value(p, loss), abs=1e-12)


@pytest.mark.parametrize(("loss", "form"), CASES)
def test_permuting_the_batch_with_the_indices_changes_nothing(loss: str, form: str) -> None:
    p = problem(form)
    order = torch.tensor([3, 1, 4, 0, 2])
    inverse = order.argsort()

    def moved(mixture: Mixture | None) -> Mixture | None:
        if mixture is None:
            return None
        return mixture._replace(first=inverse[mixture.first], second=inverse[mixture.second])

    permuted = p._replace(
        out0=p.out0[order],
        out1=p.out1[order],
        mixture0=moved(p.mixture0),
        mixture1=moved(p.mixture1),
    )
    assert value(permuted, loss) == pytest.approx(value(p, loss), abs=1e-12)


@pytest.mark.parametrize(("loss", "form"), CASES)
def test_swapping_first_and_second_with_lam_to_1_minus_lam_changes_nothing(
    loss: str, form: str
) -> None:
    p = problem(form)
    pairs = p.mixture0
    swapped = p._replace(mixture0=Mixture(pairs.images, pairs.second, pairs.first, 1 - pairs.lam))
    assert value(swapped, loss) == pytest.approx(value(p, loss), abs=1e-12)
    # The swap alone does change something: lam is not 1/2.
    alone = swapped._replace(mixture0=swapped.mixture0._replace(lam=pairs.lam))
    assert value(alone, loss) != pytest.approx(value(p, loss), abs=1e-3)


@pytest.mark.parametrize(("loss", "form"), NEW)
def test_loss_is_linear_in_the_target(loss: str, form: str) -> None:
    p = problem(form)._replace(mixed1=None, mixture1=None)
    lam = p.mixture0.lam
    at_one, at_zero = (
        p._replace(mixture0=p.mixture0._replace(lam=torch.full_like(lam, end))) for end in (1, 0)
    )
    for weight in (0.0, 0.25, 0.7, 1.0):
        at = p._replace(mixture0=p.mixture0._replace(lam=torch.full_like(lam, weight)))
        expected = weight * value(at_one, loss) + (1 - weight) * value(at_zero, loss)
        assert value(at, loss) == pytest.approx(expected, abs=1e-12)


# In SimCLR's Un-Mix mixtures are candidates, so twice as many are another softmax.
@pytest.mark.parametrize(("loss", "form"), [case for case in NEW if case != ("unmix", "simclr")])
def test_pairs_in_both_orders_with_mirrored_lam_have_the_loss_of_each_pair_once(
    loss: str, form: str
) -> None:
    # The permutation that swaps the halves has each of MixCo's pairs twice.
    p = problem(form)._replace(mixed1=None, mixture1=None)
    first, second, lam = p.mixture0[1:]
    twice = p._replace(
        mixed0=p.mixed0.repeat(2, 1),
        mixture0=Mixture(
            p.mixture0.images,
            torch.cat([first, second]),
            torch.cat([second, first]),
            torch.cat([lam, 1 - lam]),
        ),
    )
    assert value(twice, loss) == pytest.approx(value(p, loss), abs=1e-12)


@pytest.mark.parametrize(("loss", "form"), CASES)
def test_gather_distributed_without_a_process_group_changes_nothing_and_warns(
    loss: str, form: str
) -> None:
    p = problem(form)
    expected = value(p, loss)
    with pytest.warns(UserWarning, match="there is no process group"):
        assert value(p, loss, gather_distributed=True) == expected


# The queue


@pytest.mark.parametrize(("loss", "mixed"), [("mixco", False), *((loss, True) for loss in LOSSES)])
def test_queue_is_read_before_it_is_extended_once_by_the_unit_keys(loss: str, mixed: bool) -> None:
    p = problem("moco")
    p = p if mixed else p._replace(mixed0=None, mixture0=None)
    criterion = criterion_of(p, loss)
    args = in_training(p, loss)
    # Were this step's keys among its negatives, the value would not be that of the old queue.
    assert criterion(*args).item() == pytest.approx(expected_of(p, loss), abs=1e-9)
    keys = torch.tensor(reference.units(p.out1), dtype=torch.float64)
    after = torch.cat([keys, p.queue[5:]])
    torch.testing.assert_close(criterion.queue.keys, after, rtol=0, atol=1e-12)
    assert criterion.queue.position.item() == 5
    # The next step has them among its negatives, in a queue that wraps (10 keys in 7 rows).
    next_p = p._replace(queue=after)
    assert criterion(*args).item() == pytest.approx(expected_of(next_p, loss), abs=1e-9)
    assert criterion.queue.position.item() == 10 % 7
    torch.testing.assert_close(
        criterion.queue.keys, torch.cat([keys[2:5], keys[3:5], keys[:2]]), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("loss", "method"), [("mixco", "forward_components"), *((loss, "forward") for loss in LOSSES)]
)
@pytest.mark.parametrize(
    ("training", "requires_grad"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_queue_is_extended_only_in_training_and_only_if_the_query_requires_grad(
    loss: str, method: str, training: bool, requires_grad: bool
) -> None:
    p = problem("moco")
    criterion = criterion_of(p, loss).train(training)
    query, *others = in_training(p, loss)
    if loss != "imix":  # a mixture that requires a gradient is no reason to extend it
        others[1] = others[1].clone().requires_grad_()
    getattr(criterion, method)(query.requires_grad_(requires_grad), *others)
    extended = training and requires_grad
    assert criterion.queue.position.item() == (5 if extended else 0)
    assert torch.equal(criterion.queue.keys, p.queue) != extended


@pytest.mark.parametrize("loss", LOSSES)
def test_warning_of_separate_queues_names_the_loss_and_comes_once(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_loss.dist, "world_size", lambda: 2)
    p = problem("moco")
    criterion = criterion_of(p, loss)
    with pytest.warns(UserWarning, match=rf"^{type(criterion).__name__} has a queue .* 2 proc"):
        criterion(*in_training(p, loss))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(*in_training(p, loss))


@pytest.mark.parametrize("loss", LOSSES)
def test_backward_after_the_enqueue_has_the_gradient_of_a_frozen_queue(loss: str) -> None:
    p, frozen = leaves(problem("moco")), leaves(problem("moco"))
    criterion = criterion_of(p, loss)
    frozen_criterion = copy.deepcopy(criterion).eval()
    result = criterion(*arguments_of(p, loss))
    expected = frozen_criterion(*arguments_of(frozen, loss))
    criterion.queue.keys.zero_()  # as if many more steps had passed
    result.backward()
    expected.backward()
    for grad, expected_grad in zip(gradients(p, loss), gradients(frozen, loss), strict=True):
        assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("loss", LOSSES)
def test_queue_is_saved_and_a_resumed_loss_continues_with_the_same_values(loss: str) -> None:
    p = problem("moco")
    criterion = criterion_of(p, loss)
    args = in_training(p, loss)
    criterion(*args)
    resumed = criterion_of(p._replace(queue=p.queue.flip(0)), loss)
    resumed.load_state_dict(copy.deepcopy(criterion.state_dict()))
    for _ in range(3):
        assert resumed(*args).item() == criterion(*args).item()
    assert torch.equal(resumed.queue.keys, criterion.queue.keys)
    assert list(resumed.state_dict()) == ["queue.keys", "queue.position"]


# Precision


@pytest.mark.parametrize(
    ("loss", "form", "temperature"),
    [
        (loss, form, t)
        for loss, form in CASES
        for t in (TEMPERATURES if loss == "mixco" else (0.2, 0.01))
    ],
)
@pytest.mark.parametrize("rows_are", ROWS_ARE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_of_rounded_projections_is_exact_to_float32(
    dtype: torch.dtype, temperature: float, rows_are: str, loss: str, form: str
) -> None:
    p = leaves(rounded_problem(form, temperature, rows_are, dtype))
    result = criterion_in_float32(p, loss)(*arguments_of(p, loss))
    result.backward()
    assert result.dtype == torch.float32
    # Half a unit in the last place for each logit (at most 1 / temperature) and for the sum.
    eps = torch.finfo(torch.float32).eps
    expected = expected_of(p, loss)
    assert result.item() == pytest.approx(expected, rel=0, abs=eps * (expected + 1 / temperature))

    doubled = [x.detach().double() if isinstance(x, Tensor) else x for x in p.args]
    exact = leaves(p._replace(**dict(zip(Problem._fields, doubled, strict=False))))
    criterion_of(exact, loss)(*arguments_of(exact, loss)).backward()
    for grad, expected in zip(gradients(p, loss), gradients(exact, loss), strict=True):
        assert grad.isfinite().all()
        # Half a unit for the gradient's own dtype, and float32's rounding of the logits.
        size = expected.abs().max().item()
        tolerance = torch.finfo(dtype).eps / 2 * size + 2 * eps / temperature
        torch.testing.assert_close(grad.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("loss", "form"), CASES)
@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_autocast_to_float16_changes_nothing(
    dtype: torch.dtype, temperature: float, loss: str, form: str
) -> None:
    p = leaves(rounded_problem(form, temperature, "anti-aligned", dtype))
    with torch.autocast("cpu", dtype=torch.float16):
        assert (p.out0 @ p.out1.T).dtype == torch.float16  # the premise
        result = criterion_in_float32(p, loss)(*arguments_of(p, loss))
    assert result.dtype == torch.float32
    assert torch.equal(result, criterion_in_float32(p, loss)(*arguments_of(p, loss)))


@pytest.mark.parametrize(("loss", "form"), CASES)
@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_to_bfloat16_changes_nothing_where_bfloat16_is_not_faster(
    dtype: torch.dtype, temperature: float, loss: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_fast_bfloat16", lambda device: False)
    p = leaves(rounded_problem(form, temperature, "aligned", dtype))
    plain = leaves(p)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # The premise: here a product of float32 rows is one in bfloat16.
        assert (p.out0 @ p.out1.T).dtype == torch.bfloat16
        result = criterion_in_float32(p, loss)(*arguments_of(p, loss))
    expected = criterion_in_float32(plain, loss)(*arguments_of(plain, loss))
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)
    result.backward()
    expected.backward()
    for grad, expected_grad in zip(gradients(p, loss), gradients(plain, loss), strict=True):
        assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rows_are", ROWS_ARE)
@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.05, 0.01])
def test_autocast_to_bfloat16_is_right_to_a_hundredth_where_bfloat16_is_faster(
    temperature: float, rows_are: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_fast_bfloat16", lambda device: True)
    p = leaves(rounded_problem("moco", temperature, rows_are, torch.bfloat16))
    exact = criterion_in_float32(p, loss).eval()(*arguments_of(p, loss))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = criterion_in_float32(p, loss)(*arguments_of(p, loss))
    result.backward()
    # A logit's rounding in bfloat16 is up to 2^-9 of it, and a logit up to 1 / temperature.
    expected = expected_of(p, loss)
    assert result.item() == pytest.approx(expected, rel=1e-2, abs=2**-8 / temperature)
    assert result.dtype == torch.float32
    assert all(grad.isfinite().all() for grad in gradients(p, loss))
    if temperature == 0.2 and rows_are == "random":
        assert result.item() != exact.item()  # bfloat16 is in use


@pytest.mark.parametrize("is_fast", [False, True])
@pytest.mark.parametrize(("loss", "form"), CASES)
def test_backward_inside_autocast_has_the_gradient_of_the_one_outside(
    loss: str, form: str, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_fast_bfloat16", lambda device: is_fast)
    inside, outside = leaves(problem(form)), leaves(problem(form))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        criterion_of(inside, loss)(*arguments_of(inside, loss)).backward()
    criterion_of(outside, loss)(*arguments_of(outside, loss)).backward()
    for grad, expected in zip(gradients(inside, loss), gradients(outside, loss), strict=True):
        # Of a queue's products in bfloat16 the gradient has the rounding.
        tolerance = 0.02 * expected.abs().max().item() if is_fast and form == "moco" else 0.0
        torch.testing.assert_close(grad, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("loss", LOSSES)
def test_float64_projections_with_a_float32_queue_have_a_float64_loss(loss: str) -> None:
    p = problem("moco")
    criterion = criterion_in_float32(p, loss)
    result = criterion(*in_training(p, loss))
    assert result.dtype == torch.float64
    expected = expected_of(p._replace(queue=p.queue.float()), loss)
    assert result.item() == pytest.approx(expected, abs=1e-9)
    assert criterion.queue.keys.dtype == torch.float32
    assert criterion.queue.position.item() == 5


@pytest.mark.parametrize(("loss", "form"), CASES)
def test_float64_projections_stay_float64_under_autocast_to_bfloat16(
    loss: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_fast_bfloat16", lambda device: True)
    p, plain = leaves(problem(form)), leaves(problem(form))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = criterion_of(p, loss)(*arguments_of(p, loss))
    expected = criterion_of(plain, loss)(*arguments_of(plain, loss))
    assert torch.equal(result, expected)
    result.backward()
    expected.backward()
    assert all(map(torch.equal, gradients(p, loss), gradients(plain, loss)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_under_autocast_to_float16_a_bad_key_is_left_out_and_the_run_goes_on(
    bad: float, loss: str
) -> None:
    p = rounded_problem("moco", 0.2, "random", torch.float16)
    criterion = criterion_in_float32(p, loss)
    keys = p.out1.clone()
    keys[2, 1] = bad
    good, wrong = in_training(p, loss), in_training(p._replace(out1=keys), loss)
    with torch.autocast("cpu", dtype=torch.float16):
        assert not criterion(*wrong).isfinite()  # which the GradScaler sees
    assert criterion.queue.keys.isfinite().all()
    assert torch.equal(criterion.queue.keys[2], p.queue[2].float())
    assert criterion(*good).isfinite()
    with pytest.raises(FloatingPointError, match="in step 3 of"):
        criterion(*wrong)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_repeated_forward_with_a_bad_key_in_float16_finds_its_queue(loss: str) -> None:
    p = rounded_problem("moco", 0.2, "random", torch.float32)
    p.out1[2, 1] = math.nan
    criterion = criterion_in_float32(p, loss)
    with torch.autocast("cpu", dtype=torch.float16):
        checkpoint(criterion, *in_training(p, loss), use_reentrant=False).backward()
    assert criterion.queue.position.item() == 8


@pytest.mark.parametrize(
    ("loss", "form", "name"),
    [
        (loss, form, name)
        for loss, form in NEW
        for name in ("out0", "out1", "mixed0", "mixed1")
        if (name in ("out1", "mixed0") or loss == "unmix")
        and not (name == "mixed1" and form == "moco")
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_zero_row_has_similarity_zero_and_zero_gradient(
    dtype: torch.dtype, name: str, loss: str, form: str
) -> None:
    p = rounded_problem(form, 0.05, "random", dtype)
    getattr(p, name)[1] = 0
    p = leaves(p)
    create = criterion_of if dtype == torch.float64 else criterion_in_float32
    result = create(p, loss)(*arguments_of(p, loss))
    result.backward()
    assert result.item() == pytest.approx(expected_of(p, loss), abs=1e-5)
    if (loss, form, name) != ("imix", "moco", "out1"):  # these have no gradient at all
        assert (getattr(p, name).grad[1] == 0).all()
        # The rows beside it do learn.
        assert (getattr(p, name).grad[[0, 2]].abs().amax(dim=1) > 0).all()
    assert all(grad.isfinite().all() for grad in gradients(p, loss))


@pytest.mark.parametrize(("loss", "form"), CASES)
def test_second_derivative_raises(loss: str, form: str) -> None:
    p = leaves(problem(form))
    result = criterion_of(p, loss)(*arguments_of(p, loss))
    with pytest.raises(RuntimeError):  # noqa: PT012, either of the two steps may raise
        (grad,) = torch.autograd.grad(result, p.mixed0, create_graph=True)
        torch.autograd.grad((grad**2).sum(), p.mixed0)


# Devices


@pytest.mark.parametrize(("loss", "form"), CASES)
def test_a_loss_that_was_not_moved_follows_the_projections_and_looks_at_no_value(
    loss: str, form: str
) -> None:
    # Fake tensors have no values, and an operator with tensors of two devices is an error.
    with FakeTensorMode():
        criterion = LOSSES[loss](memory_bank_size=(7, 4) if form == "moco" else 0)
        out0, out1 = (torch.randn(6, 4, device="cuda", requires_grad=True) for _ in range(2))
        mixed = torch.randn(3, 4, device="cuda", requires_grad=True)
        first = torch.arange(3, device="cuda")
        pairs = Mixture(torch.empty(3, 0), first, first + 3, torch.rand(3, device="cuda"))
        args = (mixed, out1, pairs) if loss == "imix" else (out0, out1, mixed, pairs)
        for _ in range(3):
            assert criterion(*args).device.type == "cuda"
        state = criterion.state_dict()
        assert list(state) == (["queue.keys", "queue.position"] if form == "moco" else [])
        assert all(x.device.type == "cuda" for x in state.values())


# Errors of the new losses; those of MixCoLoss are in its own tests


@pytest.mark.parametrize("loss", [IMixLoss, UnMixLoss])
@pytest.mark.parametrize("wrong", [0, -0.5, math.nan, math.inf, "0.1", None])
def test_temperature_must_be_positive_and_finite(loss: type[nn.Module], wrong: object) -> None:
    with pytest.raises(ValueError, match=rf"^temperature must .* got {wrong!r}\."):
        loss(temperature=wrong)


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, "1", None])
def test_mix_weight_must_be_at_least_0_and_finite(wrong: object) -> None:
    with pytest.raises(ValueError, match=rf"^mix_weight must .* got {wrong!r}\."):
        UnMixLoss(mix_weight=wrong)


@pytest.mark.parametrize("loss", [IMixLoss, UnMixLoss])
@pytest.mark.parametrize("wrong", [4096, (4,), (0, 2)])
def test_memory_bank_size_must_be_0_or_a_pair_of_positive_integers(
    loss: type[nn.Module], wrong: object
) -> None:
    with pytest.raises(ValueError, match=r"pair \(n, dim\)"):
        loss(memory_bank_size=wrong)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("list", TypeError, r"mixture a Mixture, got Tensor and list\. Pass one Mixture, such as"),
        ("mixture first", TypeError, r"got Mixture and Tensor\. Swap the two: mixed comes first"),
        ("mixture as key", TypeError, r"^keys must .* got Mixture\. .* \(mixed, keys, mixture\)\."),
        ("keys of 3 dims", ValueError, r"^keys must have shape \(N, dim\), got \(1, 4, 3\)\."),
        ("another dim", ValueError, r"^mixed must have shape \(2, 3\) .* got \(2, 5\)\."),
        ("three mixed", ValueError, r"^mixed must have shape \(2, 3\) for the 2 mixtures of mixtu"),
        ("empty", ValueError, r"^mixture is empty: mixing needs a batch of at least 2 images\.$"),
        ("image 4", ValueError, r"^mixture names image 4 of a batch of 4\."),
        ("lam 1.5", ValueError, r"^lam of mixture must be in \[0, 1\], got 1\.5\."),
    ],
)
@pytest.mark.parametrize("memory_bank_size", [0, (8, 3)])
def test_imix_names_what_is_wrong_with_its_arguments_and_leaves_the_queue(
    memory_bank_size: object, change: str, error: type[Exception], message: str
) -> None:
    pairs = Mixture(
        torch.rand(2, 1, 1, 1), torch.tensor([0, 1]), torch.tensor([2, 3]), torch.rand(2)
    )
    mixed, keys = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3)
    args = {
        "list": (mixed, keys, [pairs]),
        "mixture first": (pairs, keys, mixed),
        "mixture as key": (mixed, pairs, keys),
        "keys of 3 dims": (mixed, keys[None], pairs),
        "another dim": (torch.randn(2, 5), keys, pairs),
        "three mixed": (torch.randn(3, 3), keys, pairs),
        "empty": (mixed[:0], keys, Mixture(*(x[:0] for x in pairs))),
        "image 4": (mixed, keys, pairs._replace(second=torch.tensor([2, 4]))),
        "lam 1.5": (mixed, keys, pairs._replace(lam=torch.tensor([0.5, 1.5]))),
    }
    criterion = IMixLoss(memory_bank_size=memory_bank_size)
    assert criterion(mixed, keys, pairs).isfinite()
    before = copy.deepcopy(criterion.state_dict())
    with pytest.raises(error, match=message):
        criterion(*args[change])
    assert all(torch.equal(x, before[name]) for name, x in criterion.state_dict().items())


def test_imix_needs_two_images_without_a_queue_one_with_it_and_keys_of_its_dim() -> None:
    pairs = Mixture(torch.empty(1, 0), *torch.zeros(2, 1, dtype=torch.int64), torch.tensor([0.3]))
    one = torch.ones(1, 4)
    with pytest.raises(ValueError, match=r"at least 2 images, got 1\."):
        IMixLoss()(one, one, pairs)
    criterion = IMixLoss(memory_bank_size=(3, 4))
    assert criterion(one, one, pairs).item() > 0
    with pytest.raises(ValueError, match="batch is empty: keys needs at least 1 row"):
        criterion(one, one[:0], pairs)
    with pytest.raises(ValueError, match=r"has dim 4, the projections have 5\."):
        criterion(torch.ones(1, 5), torch.ones(1, 5), pairs)


def test_unmix_names_what_is_wrong_with_its_arguments() -> None:
    p = problem("moco")
    criterion = criterion_of(p, "unmix")
    with pytest.raises(ValueError, match="mixed0 was given without mixture0"):
        criterion(p.out0, p.out1, p.mixed0)
    with pytest.raises(ValueError, match="mixed1 and mixture1 need a loss without a queue"):
        criterion(p.out0, p.out1, mixed1=p.mixed0, mixture1=p.mixture0)
    with pytest.raises(ValueError, match=r"at least 2 images, got 1\."):
        UnMixLoss()(torch.ones(1, 4), torch.ones(1, 4))


# torch.compile and activation checkpointing


# The other losses' compiled steps with a queue are in test_compile.py.
def test_moco_form_compiles_with_the_enqueue_alone_outside_the_graph() -> None:
    def compiled_and_eager(**options: object) -> tuple[nn.Module, nn.Module]:
        torch.compiler.reset()
        criterion = criterion_of(problem("moco"))
        eager = copy.deepcopy(criterion)
        return torch.compile(criterion, backend="aot_eager", **options), eager

    p = problem("moco")
    compiled, eager = compiled_and_eager()
    for _ in range(3):
        ours, expected = leaves(p), leaves(p)
        loss, expected_loss = compiled(*ours.args), eager(*expected.args)
        loss.backward()
        expected_loss.backward()
        torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-12)
        for grad, expected_grad in zip(gradients(ours), gradients(expected), strict=True):
            torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)
        assert torch.equal(compiled.queue.keys, eager.queue.keys)
        assert torch.equal(compiled.queue.position, eager.queue.position)
    # Without the enqueue there is nothing that breaks the graph.
    compiled, eager = compiled_and_eager(fullgraph=True)
    torch.testing.assert_close(compiled.eval()(*p.args), eager.eval()(*p.args), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "form", "fast"),
    [
        ("mixco", "moco", True),
        ("mixco", "moco", False),
        ("mixco", "simclr", True),
        ("mixco", "simclr", False),
        ("imix", "moco", True),
        ("unmix", "simclr", True),
    ],
)
def test_under_autocast_to_bfloat16_the_loss_compiles_as_one_graph(
    loss: str, form: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch.compile cannot trace the question to the processor.
    def has_fast_bfloat16(device: torch.device) -> bool:
        torch._dynamo.graph_break()
        return fast

    monkeypatch.setattr(machine, "has_fast_bfloat16", has_fast_bfloat16)
    torch.compiler.reset()
    p = rounded_problem(form, 0.2, "random", torch.bfloat16)
    eager, criterion = criterion_in_float32(p, loss).eval(), criterion_in_float32(p, loss).eval()
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True)
    ours, expected = leaves(p), leaves(p)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = compiled(*arguments_of(ours, loss))
        expected_result = eager(*arguments_of(expected, loss))
    result.backward()
    expected_result.backward()
    torch.testing.assert_close(result, expected_result)
    pairs = zip(gradients(ours, loss), gradients(expected, loss), strict=True)
    for grad, expected_grad in pairs:
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("encoder_inside", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_under_activation_checkpointing_the_queue_is_written_once_and_gradients_stay(
    loss: str, encoder_inside: bool
) -> None:
    p = problem("moco")
    plain, checkpointed = criterion_of(p, loss), criterion_of(p, loss)
    weight = torch.eye(4, dtype=torch.float64) + 0.1

    def step(criterion: nn.Module, w: Tensor, use_checkpoint: bool) -> Tensor:
        def run(out0: Tensor, out1: Tensor, mixed0: Tensor) -> Tensor:
            if encoder_inside:
                out0, mixed0 = out0 @ w, mixed0 @ w
            return criterion(*arguments_of(p._replace(out0=out0, out1=out1, mixed0=mixed0), loss))

        outs = (p.out0, p.out1, p.mixed0)
        if not encoder_inside:
            outs = (p.out0 @ w, p.out1, p.mixed0 @ w)
        return checkpoint(run, *outs, use_reentrant=False) if use_checkpoint else run(*outs)

    for _ in range(3):  # five keys a step into a queue of seven
        weights = [weight.clone().requires_grad_() for _ in range(2)]
        losses = [
            step(plain, weights[0], False),
            step(checkpointed, weights[1], True),
        ]
        for result in losses:
            result.backward()
        assert torch.equal(losses[0], losses[1])
        assert torch.equal(weights[0].grad, weights[1].grad)
        assert torch.equal(plain.queue.keys, checkpointed.queue.keys)
        assert torch.equal(plain.queue.position, checkpointed.queue.position)


@pytest.mark.parametrize("loss", LOSSES)
def test_checkpointed_backward_after_another_forward_is_an_error_not_a_wrong_gradient(
    loss: str,
) -> None:
    p = problem("moco")
    criterion = criterion_of(p, loss)
    losses = [
        checkpoint(criterion, *in_training(p._replace(out1=keys), loss), use_reentrant=False)
        for keys in (p.out1, -p.out1)
    ]
    with pytest.raises(RuntimeError, match="Call backward before the next forward"):
        losses[0].backward()


@pytest.mark.parametrize("loss", LOSSES)
def test_reentrant_checkpointing_of_the_encoder_is_an_error_not_a_queue_that_stands_still(
    loss: str,
) -> None:
    # Its first forward has no gradient, so that nothing is enqueued.
    query, *others = arguments_of(problem("moco"), loss)
    criterion = criterion_of(problem("moco"), loss)
    weight = torch.eye(4, dtype=torch.float64, requires_grad=True)
    result = checkpoint(lambda w: criterion(query @ w, *others), weight, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        result.backward()


@pytest.mark.parametrize("loss", LOSSES)
def test_checkpointing_in_eval_mode_leaves_the_queue_alone(loss: str) -> None:
    p = problem("moco")
    criterion = criterion_of(p, loss).eval()
    args = in_training(p, loss)
    checkpoint(criterion, *args, use_reentrant=False).backward()
    assert torch.equal(criterion.queue.keys, p.queue)
    assert args[0].grad.abs().sum() > 0
