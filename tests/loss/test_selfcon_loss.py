import itertools
import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck

from mixco_lightly import SelfConLoss
from mixco_lightly.loss.contrastive import unit_rows
from tests import reference
from tests.reference import MULTI_VIEW, ONE_EXIT, SELFCON_METHODS, SelfConProblem, draw_selfcon

TEMPERATURES = [1.0, 0.5, 0.2, 0.05, 0.02, 0.01]
STARRED = [method for method in SELFCON_METHODS if method.endswith("*")]
SUPERVISED = ["SelfCon-S", "SelfCon-M", "SelfCon-S*", "SelfCon-M*", "SupCon-S", "SupCon"]


def criterion_of(p: SelfConProblem) -> SelfConLoss:
    """The loss with the settings of the table in its docstring."""
    views_are_positives = p.method in ["SelfCon-MU, both views", "SelfCon-MU*", "SimCLR"]
    return SelfConLoss(
        p.temperature,
        p.base_temperature,
        subnetwork_weight=p.alpha if p.method in STARRED else None,
        num_views=2 if views_are_positives else 1,
    )


def labels_of(p: SelfConProblem) -> Tensor | None:
    if p.method not in SUPERVISED:
        return None
    return torch.tensor(p.labels).repeat(reference.num_views(p.method))


def loss_of(p: SelfConProblem) -> Tensor:
    return criterion_of(p)(p.features, labels_of(p))


def rows(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def problem(method: str, exits: int = 2, dim: int = 4) -> SelfConProblem:
    """Four images; the label of the last is no other's."""
    exits = 1 if method in ONE_EXIT else exits
    features = rows(4 * reference.num_views(method), exits, dim)
    return SelfConProblem(method, features, [7, -2, 7, 3], 0.2, 0.07, 0.6)


def leaf(p: SelfConProblem) -> SelfConProblem:
    return p._replace(features=p.features.detach().clone().requires_grad_())


def gradient(p: SelfConProblem) -> Tensor:
    p = leaf(p)
    loss_of(p).backward()
    return p.features.grad


def assert_equal(p: SelfConProblem, other: SelfConProblem) -> None:
    torch.testing.assert_close(loss_of(p), loss_of(other), rtol=0, atol=1e-12)


# Values and gradients against loops


@pytest.mark.parametrize("method", SELFCON_METHODS)
@pytest.mark.parametrize("seed", range(20))
def test_loss_equals_loops_over_the_sets_of_the_method(seed: int, method: str) -> None:
    p = draw_selfcon(method, seed)
    assert loss_of(p).item() == pytest.approx(reference.selfcon(p), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("method", SELFCON_METHODS)
def test_gradient_equals_central_differences_of_the_loops(method: str) -> None:
    p = problem(method, dim=2)
    expected, step = torch.zeros_like(p.features), 1e-5
    for index in range(p.features.numel()):
        values = []
        for sign in (1, -1):
            moved = p.features.clone()
            moved.view(-1)[index] += sign * step
            values.append(reference.selfcon(p._replace(features=moved)))
        expected.view(-1)[index] = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(gradient(p), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("exits", [2, 3])
@pytest.mark.parametrize("method", SELFCON_METHODS)
def test_gradcheck(method: str, exits: int) -> None:
    p = leaf(problem(method, exits, dim=2))
    criterion, labels = criterion_of(p), labels_of(p)
    assert gradcheck(lambda features: criterion(features, labels), p.features)


def test_selfcon_s_of_hand_set_vectors() -> None:
    # Image 0: e0 at both exits; image 1: e1, then -e0. T = 1/2, T0 = 1/4.
    image0, image1 = [[1.0, 0.0], [3.0, 0.0]], [[0.0, 2.0], [-1.0, 0.0]]
    features = torch.tensor([image0, image1], dtype=torch.float64)
    criterion = SelfConLoss(temperature=0.5, base_temperature=0.25)
    # Of other labels: the positive is the other exit. Logits, positive first:
    # image 0: 2, 0, -2 twice; e1: 0, 0, 0; -e0: 0, -2, -2.
    aligned = math.log(math.exp(2) + 1 + math.exp(-2)) - 2
    expected = 2 * (2 * aligned + math.log(3) + math.log(1 + 2 * math.exp(-2))) / 4
    loss = criterion(features, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    # Of one label: all three others are positives, so the mean logit is subtracted.
    mean_logits = [(2 + 0 - 2) / 3, (2 + 0 - 2) / 3, 0, (0 - 2 - 2) / 3]
    log_sums = [aligned + 2, aligned + 2, math.log(3), math.log(1 + 2 * math.exp(-2))]
    expected = 2 * (sum(log_sums) - sum(mean_logits)) / 4
    loss = criterion(features, torch.tensor([5, 5]))
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_default_settings_are_temperature_01_base_temperature_007_all_exits_one_view() -> None:
    p = problem("SelfCon-S")._replace(temperature=0.1, base_temperature=0.07)
    loss = SelfConLoss()(p.features, labels_of(p))
    assert loss.item() == pytest.approx(reference.selfcon(p), abs=1e-9)
    p = problem("SelfCon-MU")._replace(temperature=0.1, base_temperature=0.07)
    assert SelfConLoss()(p.features).item() == pytest.approx(reference.selfcon(p), abs=1e-9)


# Identities


@pytest.mark.parametrize("method", SELFCON_METHODS)
def test_equal_similarities_give_the_log_of_the_number_of_candidates(method: str) -> None:
    p = problem(method, exits=3)
    p = p._replace(features=torch.ones_like(p.features))
    n, e, _ = p.features.shape
    expected = math.log(n * e - 1)  # the anchor itself is no candidate
    if method in STARRED:
        backbone = 0.0 if method == "SelfCon-SU*" else math.log(n - 1)
        expected = backbone + p.alpha * expected
    assert loss_of(p).item() == pytest.approx(0.2 / 0.07 * expected, abs=1e-12)


def test_authors_batch_of_1024_starts_at_10_89_nats() -> None:
    loss = SelfConLoss()(torch.ones(1024, 2, 3), torch.arange(1024) % 100)
    assert loss.item() == pytest.approx(0.1 / 0.07 * math.log(2047), rel=1e-6)
    assert loss.item() == pytest.approx(10.89, abs=5e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.05])
def test_selfcon_su_of_two_exits_is_lightlys_nt_xent_times_the_ratio_of_the_temperatures(
    temperature: float,
) -> None:
    ours, theirs = rows(5, 2, 4).requires_grad_(), rows(5, 2, 4).requires_grad_()
    loss = SelfConLoss(temperature)(ours)
    expected = temperature / 0.07 * NTXentLoss(temperature)(theirs[:, 0], theirs[:, 1])
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-11)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.05])
def test_simclr_form_equals_lightlys_nt_xent(temperature: float) -> None:
    ours, theirs = rows(10, 1, 4).requires_grad_(), rows(10, 1, 4).requires_grad_()
    loss = SelfConLoss(temperature, base_temperature=temperature, num_views=2)(ours)
    expected = NTXentLoss(temperature)(theirs[:5, 0], theirs[5:, 0])
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


def test_selfcon_mu_is_selfcon_su_of_twice_the_images() -> None:
    p = problem("SelfCon-MU")
    assert_equal(p, p._replace(method="SelfCon-SU", labels=list(range(8))))


def test_other_view_is_a_negative_in_selfcon_mu_and_a_positive_with_num_views_2() -> None:
    # The exits of a view agree, the views do not.
    features = torch.eye(4, dtype=torch.float64).unsqueeze(1).repeat(1, 2, 1).requires_grad_()
    for num_views, pulls in [(1, False), (2, True)]:
        loss = SelfConLoss(num_views=num_views)(features)
        (grad,) = torch.autograd.grad(loss, features)
        # Rows 0 and 2 are views of image 0: to descend moves row 0 to or from row 2.
        assert ((-grad[0, 0] @ features[2, 0]).item() > 0) == pulls


def test_supcon_of_distinct_labels_is_simclr() -> None:
    p = problem("SupCon")._replace(labels=[5, 0, -1, 9])
    assert_equal(p, p._replace(method="SimCLR"))


@pytest.mark.parametrize(
    ("supervised", "unsupervised"),
    [
        ("SelfCon-S", "SelfCon-SU"),
        ("SelfCon-S*", "SelfCon-SU*"),
        ("SelfCon-M", "SelfCon-MU, both views"),
        ("SelfCon-M*", "SelfCon-MU*"),
    ],
)
def test_distinct_labels_give_the_unsupervised_loss(supervised: str, unsupervised: str) -> None:
    p = problem(supervised, exits=3)._replace(labels=[5, 0, -1, 9])
    assert_equal(p, p._replace(method=unsupervised))


def test_two_exits_of_one_view_equal_one_exit_of_two_views() -> None:
    p = problem("SelfCon-S")
    as_views = torch.cat([p.features[:, :1], p.features[:, 1:]])
    assert_equal(p, p._replace(method="SupCon", features=as_views))


def test_subnetwork_weight_0_is_supcon_of_the_backbones_exit() -> None:
    for starred, one_exit in [("SelfCon-S*", "SupCon-S"), ("SelfCon-M*", "SupCon")]:
        p = problem(starred)._replace(alpha=0.0)
        assert_equal(p, p._replace(method=one_exit, features=p.features[:, 1:]))
        assert (gradient(p)[:, 0] == 0).all()


@pytest.mark.parametrize("method", STARRED)
def test_starred_loss_is_linear_in_the_subnetwork_weight(method: str) -> None:
    values = [loss_of(problem(method)._replace(alpha=a)).item() for a in (0.0, 1.0, 3.0)]
    assert values[1] > values[0] + 0.1
    assert values[2] == pytest.approx(values[0] + 3 * (values[1] - values[0]), abs=1e-12)


@pytest.mark.parametrize("method", SELFCON_METHODS)
def test_permuting_the_images_with_their_labels_changes_nothing(method: str) -> None:
    p = problem(method, exits=3)
    order = torch.tensor([2, 0, 3, 1])
    by_view = p.features.view(-1, 4, *p.features.shape[1:])
    permuted = by_view[:, order].flatten(0, 1)
    labels = [p.labels[i] for i in order]
    assert_equal(p, p._replace(features=permuted, labels=labels))
    if method in SUPERVISED and method != "SelfCon-S*":
        # The features alone: other images are of one class.
        assert loss_of(p._replace(features=permuted)).item() != pytest.approx(
            loss_of(p).item(), abs=1e-4
        )


@pytest.mark.parametrize("method", [*MULTI_VIEW, "SupCon", "SimCLR"])
def test_exchanging_the_views_changes_nothing(method: str) -> None:
    p = problem(method)
    assert_equal(p, p._replace(features=p.features.roll(4, dims=0)))


@pytest.mark.parametrize("method", [m for m in SELFCON_METHODS if m not in ONE_EXIT])
def test_order_of_the_exits_matters_only_for_the_backbones_place_in_starred_methods(
    method: str,
) -> None:
    p = problem(method, exits=3)
    assert_equal(p, p._replace(features=p.features[:, [1, 0, 2]]))
    moved = loss_of(p._replace(features=p.features[:, [2, 0, 1]])).item()
    is_same = moved == pytest.approx(loss_of(p).item(), abs=1e-6)
    assert is_same == (method not in STARRED)


@pytest.mark.parametrize("method", SUPERVISED)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_only_the_equality_of_labels_counts(method: str, dtype: torch.dtype) -> None:
    p = problem(method)
    renamed = torch.tensor([200, 0, 200, 9], dtype=dtype).repeat(reference.num_views(method))
    torch.testing.assert_close(criterion_of(p)(p.features, renamed), loss_of(p), rtol=0, atol=0)


@pytest.mark.parametrize("method", SELFCON_METHODS)
def test_scaling_each_output_by_a_positive_factor_changes_nothing(method: str) -> None:
    p = problem(method)
    factors = 10 ** rows(*p.features.shape[:2], 1, seed=1)
    assert_equal(p, p._replace(features=p.features * factors))


@pytest.mark.parametrize("method", SELFCON_METHODS)
def test_rotating_all_outputs_changes_nothing(method: str) -> None:
    p = problem(method)
    rotation, _ = torch.linalg.qr(rows(4, 4, seed=1))
    assert_equal(p, p._replace(features=p.features @ rotation))


@pytest.mark.parametrize("method", SUPERVISED)
def test_with_labels_num_views_has_no_effect(method: str) -> None:
    p = problem(method)
    criterion = criterion_of(p)
    criterion.num_views = 3
    assert torch.equal(criterion(p.features, labels_of(p)), loss_of(p))


@pytest.mark.parametrize("method", [m for m in SELFCON_METHODS if m not in ["SupCon-S"]])
def test_gradient_reaches_every_output(method: str) -> None:
    assert (gradient(problem(method, exits=3)).abs().amax(dim=2) > 1e-6).all()


def test_twenty_gradient_steps_lower_the_loss() -> None:
    features = rows(8, 2, 16).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    losses = []
    for _ in range(20):
        loss = SelfConLoss()(features, labels)
        (grad,) = torch.autograd.grad(loss, features)
        features = (features - grad).detach().requires_grad_()
        losses.append(loss.item())
    assert all(after < before for before, after in itertools.pairwise(losses))
    # Of 15 candidates 3 are positives: the least possible is T / T0 * ln 3.
    assert 0.1 / 0.07 * math.log(3) < losses[-1] < losses[0] / 2


# Anchors without a positive


def test_anchors_without_a_positive_are_left_out_of_the_mean_but_stay_candidates() -> None:
    features, labels = rows(5, 1, 3), torch.tensor([1, 0, 2, 0, 3])
    criterion = SelfConLoss(0.5, base_temperature=0.5)
    z = unit_rows(features[:, 0])
    logits = z @ z.T / 0.5
    logits.fill_diagonal_(-math.inf)
    expected = (logits.logsumexp(dim=1) - logits[1, 3])[[1, 3]].mean()
    torch.testing.assert_close(criterion(features, labels), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("starred", [False, True])
def test_without_any_positive_loss_and_gradient_are_zero_with_a_graph(starred: bool) -> None:
    features = rows(4, 2 if starred else 1, 3).requires_grad_()
    criterion = SelfConLoss(subnetwork_weight=0.0 if starred else None)
    loss = criterion(features, torch.arange(4))
    assert loss.item() == 0.0
    loss.backward()
    assert (features.grad == 0).all()


def test_a_nan_is_not_hidden_where_there_is_no_positive() -> None:
    features = rows(4, 1, 3)
    features[2, 0, 1] = math.nan
    assert SelfConLoss()(features, torch.arange(4)).isnan()


# Precision


ROWS_ARE = ["random", "aligned", "duplicated", "anti-aligned"]


def rounded_problem(
    method: str, temperature: float, rows_are: str, dtype: torch.dtype
) -> SelfConProblem:
    """Six images with outputs that exist in ``dtype``; T0 = T."""
    exits = 1 if method in ONE_EXIT else 2
    first = rows(6 * reference.num_views(method), 16, seed=1)
    if rows_are in ("aligned", "anti-aligned"):
        first = first[:6].repeat(len(first) // 6, 1) + 0.1 * first
    second = {
        "random": rows(*first.shape, seed=2),
        "aligned": first + 0.3 * rows(*first.shape, seed=2),  # as late in training
        "duplicated": first,
        "anti-aligned": -first,  # the largest gap of logits, 2 / temperature
    }[rows_are]
    if rows_are == "duplicated":
        second[1] = second[0]  # the positive is also a negative
    features = torch.stack([first, second], dim=1)[:, :exits].to(dtype)
    labels = [0, 1, 2, 0, 1, 3]
    return SelfConProblem(method, features, labels, temperature, temperature, 0.7)


@pytest.mark.parametrize("method", ["SelfCon-S", "SelfCon-SU", "SelfCon-M*", "SupCon-S"])
@pytest.mark.parametrize("rows_are", ROWS_ARE)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_of_rounded_features_is_exact_to_float32(
    dtype: torch.dtype, temperature: float, rows_are: str, method: str
) -> None:
    p = leaf(rounded_problem(method, temperature, rows_are, dtype))
    loss = loss_of(p)
    loss.backward()
    assert loss.dtype == torch.float32
    # A unit in the last place of the loss and, in each term, of the positives' mean logit and of
    # the log-sum-exp (both at most 1 / temperature but for the loss itself).
    eps, terms = torch.finfo(torch.float32).eps, 1 + p.alpha * (method in STARRED)
    expected = reference.selfcon(p)
    tolerance = eps * (expected + 2 * terms / temperature)
    assert loss.item() == pytest.approx(expected, rel=0, abs=tolerance)

    expected = gradient(p._replace(features=p.features.double()))
    assert p.features.grad.isfinite().all()
    # Half a unit for the gradient's own dtype, and float32's rounding of the logits.
    size = expected.abs().max().item()
    tolerance = torch.finfo(dtype).eps / 2 * size + 2 * eps / temperature
    torch.testing.assert_close(p.features.grad.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", SELFCON_METHODS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_loss_in_float64_is_exact_at_every_temperature(temperature: float, method: str) -> None:
    for rows_are in ROWS_ARE:
        p = rounded_problem(method, temperature, rows_are, torch.float64)
        loss = loss_of(p)
        assert loss.dtype == torch.float64
        assert loss.item() == pytest.approx(reference.selfcon(p), rel=1e-9, abs=1e-9), rows_are


@pytest.mark.parametrize("method", SELFCON_METHODS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    ("autocast", "dtype"),
    [
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
)
def test_autocast_changes_nothing(
    autocast: torch.dtype, dtype: torch.dtype, temperature: float, method: str
) -> None:
    p = leaf(rounded_problem(method, temperature, "aligned", dtype))
    with torch.autocast("cpu", dtype=autocast):
        # The premise: here a product of float32 rows is one in half precision.
        assert (p.features[:, 0] @ p.features[:, 0].T).dtype == autocast
        loss = loss_of(p)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_of(p))
    loss.backward()
    assert torch.equal(p.features.grad, gradient(p))


@pytest.mark.parametrize("method", SELFCON_METHODS)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_zero_output_has_similarity_zero_and_zero_gradient(dtype: torch.dtype, method: str) -> None:
    p = rounded_problem(method, 0.05, "random", dtype)
    p.features[1, 0] = 0
    assert loss_of(p).item() == pytest.approx(reference.selfcon(p), abs=2e-5)
    grad = gradient(p)
    assert grad.isfinite().all()
    assert (grad[1, 0] == 0).all()
    assert (grad[[0, 2], 0].abs().amax(dim=1) > 0).all()


def test_float16_outputs_of_norm_1e4_have_the_loss_of_the_scaled_down_ones() -> None:
    p = rounded_problem("SelfCon-S", 0.05, "random", torch.float16)
    big = p._replace(features=p.features * 4096)
    assert big.features.isfinite().all()
    assert big.features.float().norm(dim=2).min() > 1e4
    # A power of two scales exactly, so that not even the last bit changes.
    assert torch.equal(loss_of(big), loss_of(p))


@pytest.mark.parametrize("method", ["SelfCon-S", "SelfCon-MU*", "SupCon"])
def test_float64_features_have_a_float64_loss(method: str) -> None:
    assert loss_of(problem(method)).dtype == torch.float64


def test_second_derivative_raises() -> None:
    p = leaf(problem("SelfCon-S"))
    with pytest.raises(RuntimeError):  # noqa: PT012, either of the two steps may raise
        (grad,) = torch.autograd.grad(loss_of(p), p.features, create_graph=True)
        torch.autograd.grad((grad**2).sum(), p.features)


@pytest.mark.parametrize("method", ["SelfCon-S", "SelfCon-M*", "SupCon-S", "SimCLR"])
def test_backward_inside_autocast_has_the_gradient_of_the_one_outside(method: str) -> None:
    p = leaf(rounded_problem(method, 0.2, "random", torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_of(p).backward()
    assert torch.equal(p.features.grad, gradient(p))


@pytest.mark.parametrize("method", SELFCON_METHODS)
def test_no_value_is_looked_at_which_would_make_a_gpu_wait(method: str) -> None:
    p = problem(method)
    # Fake tensors have no values: to ask for one is an error.
    with FakeTensorMode() as mode:
        features = mode.from_tensor(p.features).requires_grad_()
        labels = labels_of(p)
        loss = criterion_of(p)(features, None if labels is None else mode.from_tensor(labels))
        loss.backward()
    assert features.grad.shape == p.features.shape


@pytest.mark.parametrize("method", ["SelfCon-S", "SupCon-S"])
def test_loss_compiles_as_one_graph_with_equal_value_and_gradient(method: str) -> None:
    torch.compiler.reset()
    p = leaf(problem(method))
    compiled = torch.compile(criterion_of(p), backend="aot_eager", fullgraph=True)
    loss = compiled(p.features, labels_of(p))
    loss.backward()
    torch.testing.assert_close(loss, loss_of(p), rtol=0, atol=1e-12)
    torch.testing.assert_close(p.features.grad, gradient(p), rtol=0, atol=1e-12)


# Errors and warnings


def test_gather_distributed_without_a_process_group_changes_nothing_and_warns() -> None:
    p = problem("SelfCon-S")
    criterion = SelfConLoss(p.temperature, p.base_temperature, gather_distributed=True)
    with pytest.warns(UserWarning, match="there is no process group"):
        loss = criterion(p.features, labels_of(p))
    assert torch.equal(loss, loss_of(p))


@pytest.mark.parametrize("name", ["temperature", "base_temperature"])
@pytest.mark.parametrize("wrong", [0, 0.0, -0.5, math.nan, math.inf, -math.inf, "0.1", None])
def test_temperature_must_be_positive_and_finite(name: str, wrong: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must .* got {wrong!r}\."):
        SelfConLoss(**{name: wrong})


@pytest.mark.parametrize("wrong", [-1, -1e-9, math.nan, math.inf, "1"])
def test_subnetwork_weight_must_be_at_least_0_and_finite(wrong: object) -> None:
    with pytest.raises(ValueError, match=rf"^subnetwork_weight must .* got {wrong!r}\."):
        SelfConLoss(subnetwork_weight=wrong)


@pytest.mark.parametrize("wrong", [0, -2, 1.0, "2", None])
def test_num_views_must_be_a_positive_integer(wrong: object) -> None:
    with pytest.raises(ValueError, match=rf"^num_views must .* got {wrong!r}\."):
        SelfConLoss(num_views=wrong)


@pytest.mark.parametrize("shape", [(4, 8), (4,), (), (4, 2, 8, 1), (0, 2, 8), (4, 0, 8), (4, 2, 0)])
def test_features_of_another_shape_than_n_e_d_are_refused(shape: tuple[int, ...]) -> None:
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"shape \(N, E, D\), .* got shape {got} and"):
        SelfConLoss()(torch.ones(shape))


def test_features_of_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"floating point numbers .* torch\.int64\."):
        SelfConLoss()(torch.ones(4, 2, 8, dtype=torch.int64))


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (torch.zeros(3, dtype=torch.int64), r"shape \(3,\) and torch\.int64"),
        (torch.zeros(8, dtype=torch.int64), r"shape \(8,\) and torch\.int64"),
        (torch.zeros(4, 1, dtype=torch.int64), r"shape \(4, 1\) and torch\.int64"),
        (torch.zeros(4), r"shape \(4,\) and torch\.float32"),
    ],
)
def test_labels_that_are_not_one_integer_a_row_are_refused(labels: Tensor, got: str) -> None:
    with pytest.raises(ValueError, match=rf"integers of shape \(4,\), .* got {got}\."):
        SelfConLoss()(torch.ones(4, 2, 8), labels)


def test_rows_that_are_no_multiple_of_num_views_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^num_views=2, but the number of rows 5 "):
        SelfConLoss(num_views=2)(torch.ones(5, 2, 8))


@pytest.mark.parametrize(("num_views", "n"), [(1, 1), (2, 2)])
def test_a_batch_of_one_image_is_refused(num_views: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"at least 2 images, got 1\."):
        SelfConLoss(num_views=num_views)(torch.ones(n, 2, 8))


def test_one_exit_of_one_view_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one exit and num_views=1 .* num_views=2 for SimCLR"):
        SelfConLoss()(torch.ones(4, 1, 8))


def test_subnetwork_weight_with_one_exit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^subnetwork_weight=0\.5 needs at least 2 exits"):
        SelfConLoss(subnetwork_weight=0.5)(torch.ones(4, 1, 8), torch.arange(4))
