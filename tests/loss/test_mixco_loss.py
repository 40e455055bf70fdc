import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor
from torch.autograd import gradcheck

from mixco_lightly import MixCoLoss, Mixture
from tests import reference
from tests.loss.problems import (
    FORMS,
    ROWS_ARE,
    TEMPERATURES,
    criterion_in_float32,
    criterion_of,
    gradients,
    leaves,
    mixture,
    problem,
    rounded_problem,
    rows,
    with_lam,
)
from tests.reference import Problem, draw_problem


def value(p: Problem, **changes: object) -> float:
    return criterion_of(p, **changes)(*p.args).item()


# Values against loops


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(200))
def test_loss_and_its_terms_equal_loops(seed: int, form: str) -> None:
    p = draw_problem(seed, with_queue=form == "moco")
    components = criterion_of(p).forward_components(*p.args)
    expected = reference.mixco(p)
    assert components.contrast.item() == pytest.approx(expected.contrast, rel=1e-9, abs=1e-9)
    assert components.mix.item() == pytest.approx(expected.mix, rel=1e-9, abs=1e-9)
    assert components.total.item() == pytest.approx(expected.total, rel=1e-9, abs=1e-9)
    assert value(p) == components.total.item()


def test_moco_form_of_hand_set_vectors() -> None:
    e = torch.eye(3, dtype=torch.float64)
    p = Problem(
        out0=2 * e[:2],
        out1=5 * e[:2],
        mixed0=torch.tensor([[3.0, 4.0, 0.0]], dtype=torch.float64),
        mixture0=mixture([0], [1], [0.25]),
        mixed1=None,
        mixture1=None,
        queue=torch.stack([e[2], -e[0]]),
        temperature=0.5,
        mix_temperature=0.2,
        mix_weight=3.0,
    )
    # Plain, T = 1/2: positives 1 / T = 2; queue 0 and -2 for the first query, then 0 and 0.
    first = math.log(math.exp(2) + 1 + math.exp(-2)) - 2
    second = math.log(math.exp(2) + 1 + 1) - 2
    contrast = (first + second) / 2
    # Mixed, T = 1/5: keys 0.6 / T = 3 and 0.8 / T = 4; queue 0 and -3. Targets 1/4 and 3/4.
    mix = math.log(math.exp(3) + math.exp(4) + 1 + math.exp(-3)) - (1 / 4 * 3 + 3 / 4 * 4)
    components = criterion_of(p).forward_components(*p.args)
    assert components.contrast.item() == pytest.approx(contrast, abs=1e-12)
    assert components.mix.item() == pytest.approx(mix, abs=1e-12)
    assert components.total.item() == pytest.approx(contrast + 3 * mix, abs=1e-12)


def test_simclr_form_of_hand_set_vectors() -> None:
    e0, e1 = [1.0, 0.0], [0.0, 1.0]
    p = Problem(
        out0=torch.tensor([e0, e1], dtype=torch.float64),
        out1=torch.tensor([[7.0, 0.0], [-2.0, 0.0]], dtype=torch.float64),
        mixed0=torch.tensor([[0.0, 3.0]], dtype=torch.float64),
        mixture0=mixture([0], [1], [0.25]),
        mixed1=torch.tensor([[3.0, 4.0]], dtype=torch.float64),
        mixture1=mixture([1], [0], [0.25]),
        queue=None,
        temperature=0.5,
        mix_temperature=0.2,
        mix_weight=2.0,
    )
    # Plain, T = 1/2, views (e0, e1) and (e0, -e0). Logits of the anchors, positive first:
    # view 0: e0: 2, 0, -2; e1: 0, 0, 0. View 1: e0: 2, 0, -2; -e0: 0, -2, -2.
    aligned = math.log(math.exp(2) + 1 + math.exp(-2)) - 2
    contrast = (2 * aligned + math.log(3) + math.log(1 + 2 * math.exp(-2))) / 4
    # Mixed, T = 1/5. View 0: e1 against (e0, -e0): logits 0 and 0, so ln 2 for any lam.
    # View 1: (0.6, 0.8) against (e0, e1): logits 3 and 4, target 1/4 at e1 and 3/4 at e0.
    mix = (math.log(2) + math.log(math.exp(3) + math.exp(4)) - (1 / 4 * 4 + 3 / 4 * 3)) / 2
    components = criterion_of(p).forward_components(*p.args)
    assert components.contrast.item() == pytest.approx(contrast, abs=1e-12)
    assert components.mix.item() == pytest.approx(mix, abs=1e-12)
    assert components.total.item() == pytest.approx(contrast + 2 * mix, abs=1e-12)


def test_default_settings_are_temperature_02_mix_temperature_01_weight_1_no_queue() -> None:
    p = problem("simclr")._replace(temperature=0.2, mix_temperature=0.1, mix_weight=1.0)
    expected = reference.mixco(p).total
    assert MixCoLoss()(*p.args).item() == pytest.approx(expected, abs=1e-9)


# Gradients


@pytest.mark.parametrize("mix_weight", [1.0, 0.3])
def test_moco_form_gradcheck_in_queries_keys_and_mixed(mix_weight: float) -> None:
    p = leaves(problem("moco"))
    # eval: the queue has to stand still between the evaluations.
    criterion = criterion_of(p, mix_weight=mix_weight).eval()

    def loss(out0: Tensor, out1: Tensor, mixed0: Tensor) -> Tensor:
        return criterion(out0, out1, mixed0, p.mixture0)

    assert gradcheck(loss, (p.out0, p.out1, p.mixed0))


@pytest.mark.parametrize("mix_weight", [1.0, 0.3])
def test_simclr_form_gradcheck_in_both_views_and_both_mixed(mix_weight: float) -> None:
    p = leaves(problem("simclr"))
    criterion = criterion_of(p, mix_weight=mix_weight)

    def loss(out0: Tensor, out1: Tensor, mixed0: Tensor, mixed1: Tensor) -> Tensor:
        return criterion(out0, out1, mixed0, p.mixture0, mixed1, p.mixture1)

    assert gradcheck(loss, (p.out0, p.out1, p.mixed0, p.mixed1))


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_without_mixtures(form: str) -> None:
    p = leaves(problem(form))
    assert gradcheck(criterion_of(p).eval(), (p.out0, p.out1))


# 0.01 is below what the pass over the queue takes without a running maximum.
@pytest.mark.parametrize(
    ("form", "changes"),
    [
        ("moco", {"temperature": 0.01, "mix_temperature": 0.2}),
        ("moco", {"temperature": 0.2, "mix_temperature": 0.01}),
        ("moco", {"mix_weight": 0.0}),
        ("simclr", {"temperature": 0.05, "mix_temperature": 0.01}),
        ("simclr", {"mix_weight": 0.0}),
        ("simclr", {"mixed0": None, "mixture0": None}),
        ("simclr", {"mixed1": None, "mixture1": None}),
    ],
)
def test_gradcheck_at_low_temperatures_and_with_parts_left_out(
    form: str, changes: dict[str, object]
) -> None:
    p = leaves(problem(form)._replace(**changes))
    names = [n for n in ("out0", "out1", "mixed0", "mixed1") if getattr(p, n) is not None]
    criterion = criterion_of(p).eval()  # the queue must stay as it is

    def loss(*outs: Tensor) -> Tensor:
        return criterion(*p._replace(**dict(zip(names, outs, strict=True))).args)

    # Relative, because at 0.01 the gradient is up to 100.
    assert gradcheck(loss, [getattr(p, n) for n in names], eps=1e-7, rtol=1e-4)


def test_second_derivative_through_the_queue_raises() -> None:
    p = leaves(problem("moco"))
    loss = criterion_of(p)(*p.args)
    with pytest.raises(RuntimeError):  # noqa: PT012, either of the two steps may raise
        (grad,) = torch.autograd.grad(loss, p.out0, create_graph=True)
        torch.autograd.grad((grad**2).sum(), p.out0)


# Identities


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.05])
def test_without_mixtures_value_and_gradient_equal_lightlys_nt_xent(
    form: str, temperature: float
) -> None:
    ours, theirs = leaves(problem(form, temperature)), leaves(problem(form, temperature))
    criterion = criterion_of(ours)
    size = 0 if ours.queue is None else tuple(ours.queue.shape)
    lightly = NTXentLoss(temperature=temperature, memory_bank_size=size).double()
    if ours.queue is not None:
        lightly.memory_bank.bank.copy_(ours.queue)  # Lightly 1.6 stores (n, dim)
    loss, expected = criterion(ours.out0, ours.out1), lightly(theirs.out0, theirs.out1)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    loss.backward()
    expected.backward()
    for grad, expected_grad in zip(gradients(ours)[:2], gradients(theirs)[:2], strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)


def test_without_mixtures_a_run_of_steps_equals_lightlys_with_its_bank() -> None:
    # 6 keys and batches of 3: Lightly drops keys where a batch does not fit the bank's end.
    criterion = MixCoLoss(memory_bank_size=(6, 4)).double()
    lightly = NTXentLoss(temperature=0.2, memory_bank_size=(6, 4)).double()
    lightly.memory_bank.bank.copy_(criterion.queue.keys)
    for step in range(7):
        out0, out1 = rows(3, 4, step).requires_grad_(), rows(3, 4, 100 + step)
        torch.testing.assert_close(criterion(out0, out1), lightly(out0, out1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_without_mixtures_the_mix_term_is_zero(form: str) -> None:
    p = problem(form)
    components = criterion_of(p, mix_weight=5.0).forward_components(p.out0, p.out1)
    assert components.mix.item() == 0.0
    assert components.total.item() == components.contrast.item()


@pytest.mark.parametrize("lam", [1.0, 0.0])
@pytest.mark.parametrize("form", FORMS)
def test_lam_1_is_info_nce_of_the_first_image_and_lam_0_of_the_second(
    form: str, lam: float
) -> None:
    p = problem(form)
    p = p._replace(mixture0=with_lam(p.mixture0, lam), mixed1=None, mixture1=None)
    candidates = torch.nn.functional.normalize(p.out1, dim=1)
    if p.queue is not None:
        candidates = torch.cat([candidates, p.queue])
    logits = torch.nn.functional.normalize(p.mixed0, dim=1) @ candidates.T / p.mix_temperature
    image = p.mixture0.first if lam == 1.0 else p.mixture0.second
    expected = torch.nn.functional.cross_entropy(logits, image)
    mix = criterion_of(p).forward_components(*p.args).mix
    torch.testing.assert_close(mix, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_mix_weight_0_equals_no_mixtures_and_gives_mixtures_no_gradient(form: str) -> None:
    p = leaves(problem(form))
    loss = criterion_of(p, mix_weight=0).forward_components(*p.args)
    assert loss.total.item() == criterion_of(p)(p.out0, p.out1).item()
    assert loss.mix.item() == 0.0
    loss.total.backward()
    assert p.mixed0.grad is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mix_weight", [0.3, 1.0, 4.0])
def test_total_is_contrast_plus_weighted_mix(form: str, mix_weight: float) -> None:
    p = problem(form)
    unweighted = criterion_of(p, mix_weight=1.0).forward_components(*p.args)
    weighted = criterion_of(p, mix_weight=mix_weight).forward_components(*p.args)
    assert weighted.contrast.item() == unweighted.contrast.item()
    assert weighted.mix.item() == unweighted.mix.item()
    expected = unweighted.contrast.item() + mix_weight * unweighted.mix.item()
    assert weighted.total.item() == pytest.approx(expected, abs=1e-12)


def test_mix_term_of_two_mixtures_is_the_mean_of_the_two_terms() -> None:
    p = problem("simclr")
    criterion = criterion_of(p)
    mix = criterion.forward_components(*p.args).mix.item()
    mix0 = criterion.forward_components(p.out0, p.out1, p.mixed0, p.mixture0).mix.item()
    mix1 = criterion.forward_components(
        p.out0, p.out1, mixed1=p.mixed1, mixture1=p.mixture1
    ).mix.item()
    assert mix0 != pytest.approx(mix1, abs=1e-3)
    assert mix == pytest.approx((mix0 + mix1) / 2, abs=1e-12)


def test_simclr_form_is_symmetric_in_the_views() -> None:
    p = problem("simclr")
    exchanged = (p.out1, p.out0, p.mixed1, p.mixture1, p.mixed0, p.mixture0)
    assert criterion_of(p)(*exchanged).item() == pytest.approx(value(p), abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_mix_term_at_equal_similarities_is_the_log_of_the_number_of_candidates(form: str) -> None:
    p = problem(form)
    e0 = torch.eye(4, dtype=torch.float64)[:1]
    p = p._replace(out0=e0.expand(5, 4), out1=e0.expand(5, 4))
    p = p if p.queue is None else p._replace(queue=e0.expand(7, 4))
    mix = criterion_of(p).forward_components(*p.args).mix
    # All keys of the other view and, for MoCo, the queue.
    candidates = 5 if p.queue is None else 5 + 7
    assert mix.item() == pytest.approx(math.log(candidates), abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_contrast_at_equal_similarities_is_the_log_of_the_number_of_candidates(form: str) -> None:
    p = problem(form)
    e0 = torch.eye(4, dtype=torch.float64)[:1]
    p = p._replace(out0=e0.expand(5, 4), out1=e0.expand(5, 4))
    p = p if p.queue is None else p._replace(queue=e0.expand(7, 4))
    contrast = criterion_of(p).forward_components(*p.args).contrast
    # SimCLR: both views but the anchor. MoCo: the own key and the queue.
    candidates = 2 * 5 - 1 if p.queue is None else 1 + 7
    assert contrast.item() == pytest.approx(math.log(candidates), abs=1e-12)


# Precision


# exp(100) is beyond float32: the pass over the queue must go by the lower of the temperatures.
@pytest.mark.parametrize(("temperature", "mix_temperature"), [(0.5, 0.01), (0.01, 0.5)])
@pytest.mark.parametrize("rows_are", ROWS_ARE)
def test_two_temperatures_that_differ_are_exact_to_float32(
    rows_are: str, temperature: float, mix_temperature: float
) -> None:
    p = rounded_problem("moco", temperature, rows_are, torch.float32)
    p.mixed0[0], p.out0[0] = p.queue[3].float(), p.queue[3].float()  # similarity 1
    p = leaves(p._replace(mix_temperature=mix_temperature))
    loss = criterion_in_float32(p)(*p.args)
    loss.backward()
    expected = reference.mixco(p).total
    eps = torch.finfo(torch.float32).eps
    tolerance = eps * (expected + 1 / temperature + 1 / mix_temperature)
    assert loss.item() == pytest.approx(expected, rel=0, abs=tolerance)
    assert all(grad.isfinite().all() for grad in gradients(p))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows_are", ROWS_ARE)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_loss_and_terms_in_float64_are_exact_at_every_temperature(
    temperature: float, rows_are: str, form: str
) -> None:
    p = rounded_problem(form, temperature, rows_are, torch.float64)
    expected = reference.mixco(p)
    for actual, value in zip(criterion_of(p).forward_components(*p.args), expected, strict=True):
        assert actual.dtype == torch.float64
        assert actual.item() == pytest.approx(value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("form", "name"),
    [("moco", name) for name in ("out0", "out1", "mixed0")]
    + [("simclr", name) for name in ("out0", "out1", "mixed0", "mixed1")],
)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_zero_row_has_similarity_zero_and_zero_gradient(
    dtype: torch.dtype, name: str, form: str
) -> None:
    p = rounded_problem(form, 0.05, "random", dtype)
    getattr(p, name)[1] = 0
    p = leaves(p)
    criterion = criterion_of(p) if dtype == torch.float64 else criterion_in_float32(p)
    loss = criterion(*p.args)
    loss.backward()
    assert loss.item() == pytest.approx(reference.mixco(p).total, abs=1e-5)
    assert (getattr(p, name).grad[1] == 0).all()
    for grad in gradients(p):
        assert grad.isfinite().all()
    # The rows beside it do learn.
    assert (getattr(p, name).grad[[0, 2]].abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_float16_rows_of_norm_1e4_have_the_loss_of_the_scaled_down_rows(form: str) -> None:
    p = rounded_problem(form, 0.05, "random", torch.float16)
    big = p._replace(out0=p.out0 * 4096, out1=p.out1 * 4096, mixed0=p.mixed0 * 4096)
    assert big.out0.isfinite().all()
    assert big.out0.float().norm(dim=1).min() > 1e4
    # A power of two scales exactly, so that not even the last bit changes.
    expected = criterion_in_float32(p)(*p.args)
    assert torch.equal(criterion_in_float32(big)(*big.args), expected)


# Errors


@pytest.mark.parametrize("name", ["temperature", "mix_temperature"])
@pytest.mark.parametrize("wrong", [0, 0.0, -0.5, math.nan, math.inf, -math.inf, "0.1", None])
def test_temperature_must_be_positive_and_finite(name: str, wrong: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must .* got {wrong!r}\."):
        MixCoLoss(**{name: wrong})


@pytest.mark.parametrize("wrong", [-1, -1e-9, math.nan, math.inf, "1", None])
def test_mix_weight_must_be_at_least_0_and_finite(wrong: object) -> None:
    with pytest.raises(ValueError, match=rf"^mix_weight must .* got {wrong!r}\."):
        MixCoLoss(mix_weight=wrong)


@pytest.mark.parametrize("wrong", [4096, -1])
def test_memory_bank_size_as_a_number_other_than_0_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"^memory_bank_size must be 0 .* got {wrong}\."):
        MixCoLoss(memory_bank_size=wrong)


@pytest.mark.parametrize("wrong", ["(4,)", "(0, 2)", "(4, 0)", "(-4, 2)", "(4.0, 2)", "(4, 2, 1)"])
def test_memory_bank_size_must_be_a_pair_of_positive_integers(wrong: str) -> None:
    size = tuple(float(n) if "." in n else int(n) for n in wrong.strip("(),").split(","))
    message = wrong.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"pair \(n, dim\) .* got {message}\."):
        MixCoLoss(memory_bank_size=size)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape0", "shape1"),
    [((5, 4), (4, 4)), ((5, 4), (1, 4)), ((5, 4), (5, 3)), ((4,), (4,)), ((2, 5, 4), (2, 5, 4))],
)
def test_views_of_different_or_wrong_shape_are_refused(
    form: str, shape0: tuple[int, ...], shape1: tuple[int, ...]
) -> None:
    got = f"got {shape0} and {shape1}.".replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"same shape \(N, dim\), {got}"):
        criterion_of(problem(form))(torch.ones(shape0), torch.ones(shape1))


@pytest.mark.parametrize("n", [0, 1])
def test_simclr_form_needs_two_images(n: int) -> None:
    with pytest.raises(ValueError, match=rf"at least 2 images, got {n}\."):
        MixCoLoss()(torch.ones(n, 4), torch.ones(n, 4))


def test_moco_form_takes_one_image_and_refuses_none() -> None:
    criterion = MixCoLoss(memory_bank_size=(3, 4))
    assert criterion(torch.ones(1, 4), torch.ones(1, 4)).item() > 0
    with pytest.raises(ValueError, match="batch is empty"):
        criterion(torch.ones(0, 4), torch.ones(0, 4))


def test_projections_of_another_dim_than_the_queue_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has dim 4, the projections have 5\."):
        MixCoLoss(memory_bank_size=(3, 4))(torch.ones(2, 5), torch.ones(2, 5))


@pytest.mark.parametrize("given", [("mixed1", "mixture1"), ("mixed1",), ("mixture1",)])
def test_mixtures_of_view_1_with_a_queue_are_refused(given: tuple[str, ...]) -> None:
    p, simclr = problem("moco"), problem("simclr")
    with pytest.raises(ValueError, match="mixed1 and mixture1 need a loss without a queue"):
        criterion_of(p)(p.out0, p.out1, **{name: getattr(simclr, name) for name in given})


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("mixed0", "mixture0"),
        ("mixture0", "mixed0"),
        ("mixed1", "mixture1"),
        ("mixture1", "mixed1"),
    ],
)
def test_projections_or_mixture_without_the_other_are_refused(given: str, missing: str) -> None:
    p = problem("simclr")
    with pytest.raises(ValueError, match=rf"^{given} was given without {missing}\."):
        criterion_of(p)(p.out0, p.out1, **{given: getattr(p, given)})


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("wrong", [(4, 4), (1, 4), (5, 4), (2, 3)])
def test_mixed_projections_of_another_shape_than_their_mixture_are_refused(
    view: int, wrong: tuple[int, int]
) -> None:
    p = problem("simclr")
    pairs = mixture([0, 1], [2, 3], [0.5, 0.5])
    message = (
        rf"^mixed{view} must have shape \(2, 4\) .* mixture{view}, got \({wrong[0]}, {wrong[1]}\)"
    )
    with pytest.raises(ValueError, match=message):
        criterion_of(p)(
            p.out0, p.out1, **{f"mixed{view}": torch.ones(wrong), f"mixture{view}": pairs}
        )


@pytest.mark.parametrize("change", ["out0 of 4 rows", "mixed0 of 3 rows"])
def test_refused_call_leaves_the_queue_as_it_was(change: str) -> None:
    p = problem("moco")
    criterion = criterion_of(p)
    args = list(leaves(p).args)
    args[0 if change.startswith("out0") else 2] = torch.ones(
        4 if change.startswith("out0") else 3, 4
    )
    with pytest.raises(ValueError, match="shape"):
        criterion(*args)
    assert torch.equal(criterion.queue.keys, p.queue)
    assert criterion.queue.position.item() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lam": torch.rand(2, 1)}, r"got \(2,\), \(2,\) and \(2, 1\)"),
        ({"second": torch.tensor([2])}, r"got \(2,\), \(1,\) and \(2,\)"),
        ({"first": torch.tensor([0, 4])}, "names image 4 of a batch of 4"),
        ({"first": torch.tensor([-1, 0])}, "Pass the mixture of this batch"),
    ],
)
@pytest.mark.parametrize("memory_bank_size", [0, (8, 3)])
def test_a_mixture_that_does_not_fit_the_batch_is_refused(memory_bank_size, changes, message):
    mixture = Mixture(
        torch.rand(2, 1, 1, 1), torch.tensor([0, 1]), torch.tensor([2, 3]), torch.rand(2)
    )
    out0, out1, mixed = torch.randn(4, 3), torch.randn(4, 3), torch.randn(2, 3)
    criterion = MixCoLoss(memory_bank_size=memory_bank_size)
    assert criterion(out0, out1, mixed, mixture).isfinite()
    with pytest.raises(ValueError, match=message):
        criterion(out0, out1, mixed, mixture._replace(**changes))


def test_a_nan_key_is_an_error_with_its_step_and_the_next_clean_step_is_as_without_it():
    injected, clean = MixCoLoss(memory_bank_size=(8, 3)), MixCoLoss(memory_bank_size=(8, 3))
    clean.load_state_dict(injected.state_dict())
    batches = [(torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)) for _ in range(3)]
    for criterion in (injected, clean):
        criterion(*batches[0])
    bad = batches[1][1].clone()
    bad[2, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="step 2"):
        injected(batches[1][0], bad)
    assert torch.equal(injected(*batches[2]), clean(*batches[2]))
    assert torch.equal(injected.queue.keys, clean.queue.keys)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("list", TypeError, r"mixture0 a Mixture, got Tensor and list\. Pass one Mixture, such as"),
        ("swapped", TypeError, r"got Mixture and Tensor\. Swap the two: mixed0 comes first\."),
        ("projections are images", TypeError, r"mixture0 a Mixture, got Tensor and Tensor\."),
        ("mixture as key", TypeError, r"^out1 must be a tensor of projections, got Mixture\."),
        ("list as query", TypeError, r"^out0 must be a tensor of projections, got list\."),
        ("empty", ValueError, r"^mixture0 is empty: mixing needs a batch of at least 2 images"),
        ("scalar lam", ValueError, r"one shape \(M,\), got \(2,\), \(2,\) and \(\)"),
        ("lam 1.5", ValueError, r"^lam of mixture0 must be in \[0, 1\], got 1\.5\."),
        ("lam -0.5", ValueError, r"^lam of mixture0 must be in \[0, 1\], got -0\.5\."),
        ("lam NaN", ValueError, r"^lam of mixture0 must be in \[0, 1\], got nan\."),
        ("lam of integers", ValueError, r"^lam of mixture0 must be floating .* torch\.int64\."),
        ("first of floats", ValueError, r"must be int64, .* got torch\.float32 and torch\.int64\."),
        ("second of bools", ValueError, r"must be int64, .* got torch\.int64 and torch\.bool\."),
    ],
)
@pytest.mark.parametrize("memory_bank_size", [0, (8, 3)])
def test_wrong_arguments_are_one_error_that_names_what_was_given(
    memory_bank_size, change, error, message
):
    pairs = Mixture(
        torch.rand(2, 1, 1, 1), torch.tensor([0, 1]), torch.tensor([2, 3]), torch.rand(2)
    )
    out0, out1, mixed = torch.randn(4, 3), torch.randn(4, 3), torch.randn(2, 3)
    changes = {
        "scalar lam": {"lam": torch.tensor(0.5)},
        "lam 1.5": {"lam": torch.tensor([0.5, 1.5])},
        "lam -0.5": {"lam": torch.tensor([-0.5, 1.0])},
        "lam NaN": {"lam": torch.tensor([0.5, torch.nan])},
        "lam of integers": {"lam": torch.tensor([0, 1])},
        "first of floats": {"first": torch.tensor([0.0, 1.0])},
        "second of bools": {"second": torch.tensor([False, True])},
    }
    args = {
        "list": (out0, out1, mixed, [pairs]),
        "swapped": (out0, out1, pairs, mixed),
        "projections are images": (out0, out1, mixed, pairs.images),
        "mixture as key": (out0, pairs),
        "list as query": ([out0], out1),
        "empty": (out0, out1, mixed[:0], Mixture(*(x[:0] for x in pairs))),
    }
    given = args.get(change) or (out0, out1, mixed, pairs._replace(**changes[change]))
    with pytest.raises(error, match=message):
        MixCoLoss(memory_bank_size=memory_bank_size)(*given)


# torch.compile


@pytest.mark.parametrize("mixed", [True, False])
def test_simclr_form_compiles_as_one_graph_with_equal_value_and_gradients(mixed: bool) -> None:
    torch.compiler.reset()
    p = problem("simclr")
    criterion = criterion_of(p)
    compiled, eager = torch.compile(criterion, backend="aot_eager", fullgraph=True), criterion_of(p)
    p = p if mixed else p._replace(mixed0=None, mixture0=None, mixed1=None, mixture1=None)
    ours, expected = leaves(p), leaves(p)
    loss, expected_loss = compiled(*ours.args), eager(*expected.args)
    loss.backward()
    expected_loss.backward()
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-12)
    for grad, expected_grad in zip(gradients(ours), gradients(expected), strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)
