import math
import random

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mixco_lightly import estimate_mutual_information
from mixco_lightly.evaluation import mutual_information
from mixco_lightly.evaluation.critics import ConcatenatedCritic, SeparableCritic
from mixco_lightly.evaluation.information_bounds import (
    donsker_varadhan_bound,
    infonce_bound,
    mine_objective,
    nwj_bound,
    sum_scores,
    symmetric_infonce,
)

ESTIMATORS = ["infonce", "nwj", "mine"]
CRITICS = ["separable", "concatenated"]
QUICK = {"steps": 20, "hidden_dim": 16, "batch_size": 32}


def gaussians(nats: float, pairs: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs of which each dimension has nats / dim of mutual information."""
    rho = math.sqrt(1 - math.exp(-2 * nats / dim))
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, pairs, dim, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def draw_scores(seed: int) -> list[list[float]]:
    rng = random.Random(seed)
    k = rng.randint(2, 9)
    return [[rng.gauss(0, 3) for _ in range(k)] for _ in range(k)]


# Formulas


@pytest.mark.parametrize("seed", range(50))
def test_bounds_equal_loops(seed: int) -> None:
    scores = draw_scores(seed)
    k = len(scores)
    infonce = 0.0
    for i in range(k):
        mean = sum(math.exp(scores[i][j]) for j in range(k)) / k
        infonce += math.log(math.exp(scores[i][i]) / mean) / k
    positive = sum(scores[i][i] for i in range(k)) / k
    negatives = [math.exp(scores[i][j]) for i in range(k) for j in range(k) if i != j]
    mean_negative = sum(negatives) / len(negatives)

    sums = sum_scores(torch.tensor(scores, dtype=torch.float64))
    assert infonce_bound(sums).item() == pytest.approx(infonce, abs=1e-9)
    nwj = positive - mean_negative / math.e
    assert nwj_bound(sums).item() == pytest.approx(nwj, rel=1e-9, abs=1e-9)
    mine = positive - math.log(mean_negative)
    assert donsker_varadhan_bound(sums).item() == pytest.approx(mine, abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_infonce_is_log_k_minus_the_cross_entropy_of_the_rows(seed: int) -> None:
    scores = torch.tensor(draw_scores(seed), dtype=torch.float64)
    k = len(scores)
    expected = math.log(k) - torch.nn.functional.cross_entropy(scores, torch.arange(k))
    torch.testing.assert_close(infonce_bound(sum_scores(scores)), expected)


def test_symmetric_infonce_is_the_mean_of_rows_and_columns_and_free_by_a_constant_alone() -> None:
    scores = torch.tensor(draw_scores(4), dtype=torch.float64)
    k = len(scores)
    bound = symmetric_infonce(scores)
    rows, columns = (
        math.log(k) - torch.nn.functional.cross_entropy(part, torch.arange(k))
        for part in (scores, scores.T)
    )
    torch.testing.assert_close(bound, (rows + columns) / 2)
    torch.testing.assert_close(symmetric_infonce(scores + 5), bound)
    of_each_row = torch.arange(k, dtype=torch.float64).unsqueeze(1)
    assert not symmetric_infonce(scores + of_each_row).isclose(bound)
    torch.testing.assert_close(infonce_bound(sum_scores(scores + of_each_row)), rows)


def test_infonce_reaches_but_does_not_exceed_log_k() -> None:
    scores = 1000 * torch.eye(8, dtype=torch.float64)
    assert infonce_bound(sum_scores(scores)).item() == pytest.approx(math.log(8), abs=1e-12)


@pytest.mark.parametrize("bound", [infonce_bound, donsker_varadhan_bound])
def test_constant_added_to_all_scores_changes_infonce_and_mine_not(bound) -> None:
    scores = torch.tensor(draw_scores(0), dtype=torch.float64)
    torch.testing.assert_close(bound(sum_scores(scores + 5)), bound(sum_scores(scores)))


def test_nwj_is_largest_where_it_equals_mine_and_there_the_mean_negative_is_e() -> None:
    scores = torch.tensor(draw_scores(0), dtype=torch.float64)
    mine = donsker_varadhan_bound(sum_scores(scores))
    negative = scores[~torch.eye(len(scores), dtype=torch.bool)]
    best = scores + 1 - negative.exp().mean().log()
    torch.testing.assert_close(nwj_bound(sum_scores(best)), mine)
    assert nwj_bound(sum_scores(best + 0.5)) < mine
    assert nwj_bound(sum_scores(best - 0.5)) < mine


def test_sums_of_blocks_of_rows_are_those_of_the_whole() -> None:
    scores = torch.tensor(draw_scores(3), dtype=torch.float64)
    assert len(scores) > 3
    whole = sum_scores(scores)
    top, bottom = sum_scores(scores[:2]), sum_scores(scores[2:], offset=2)
    for part in ("positive", "negative_lse"):
        parts = torch.cat([getattr(top, part), getattr(bottom, part)])
        torch.testing.assert_close(parts, getattr(whole, part), rtol=0, atol=0)


def test_mine_gradient_divides_by_the_running_mean_instead_of_the_batchs() -> None:
    scores = torch.tensor(draw_scores(1), dtype=torch.float64, requires_grad=True)
    k = len(scores)
    off_diagonal = ~torch.eye(k, dtype=torch.bool)
    mean = scores.detach()[off_diagonal].exp().mean()
    # Twice the batch's mean halves the negatives' share of the gradient.
    (grad,) = torch.autograd.grad(mine_objective(sum_scores(scores), (2 * mean).log()), scores)
    expected = -scores.detach().exp() / (k * (k - 1)) / (2 * mean)
    torch.testing.assert_close(grad[off_diagonal], expected[off_diagonal])
    torch.testing.assert_close(grad.diagonal(), torch.full((k,), 1 / k, dtype=torch.float64))
    # With the batch's own mean it is the gradient of the bound.
    (own,) = torch.autograd.grad(mine_objective(sum_scores(scores), mean.log()), scores)
    (bound,) = torch.autograd.grad(donsker_varadhan_bound(sum_scores(scores)), scores)
    torch.testing.assert_close(own, bound)


# Critics


def test_separable_scores_are_inner_products_of_the_embeddings() -> None:
    critic, x, y = SeparableCritic(3, 5, 8), torch.randn(6, 3), torch.randn(6, 5)
    torch.nn.init.constant_(critic.constant, 2.5)
    scores = torch.cat(list(critic.score_blocks(x, y)))
    for i in range(6):
        for j in range(6):
            expected = critic.embed_x(x[i]) @ critic.embed_y(y[j])
            torch.testing.assert_close(scores[i, j], expected + 2.5)


def test_concatenated_scores_are_a_network_of_each_pair() -> None:
    critic, x, y = ConcatenatedCritic(3, 5, 8), torch.randn(6, 3), torch.randn(6, 5)
    torch.nn.init.constant_(critic.constant, 2.5)
    scores = torch.cat(list(critic.score_blocks(x, y)))
    weight = torch.cat([critic.first_x.weight, critic.first_y.weight], dim=1)
    for i in range(6):
        for j in range(6):
            first = weight @ torch.cat([x[i], y[j]]) + critic.first_x.bias
            torch.testing.assert_close(scores[i, j], critic.rest(first).squeeze() + 2.5)


@pytest.mark.parametrize("critic_class", [SeparableCritic, ConcatenatedCritic])
def test_blocks_of_few_rows_have_the_scores_of_one_block(critic_class, monkeypatch) -> None:
    critic, x, y = critic_class(3, 5, 8), torch.randn(6, 3), torch.randn(6, 5)
    (whole,) = critic.score_blocks(x, y)
    monkeypatch.setattr("mixco_lightly.evaluation.critics._BLOCK_ELEMENTS", 100)
    blocks = list(critic.score_blocks(x, y))
    assert len(blocks) > 1 or critic_class is SeparableCritic
    torch.testing.assert_close(torch.cat(blocks), whole)


# Estimates


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_nat_of_gaussians_is_found_within_a_sixth(estimator: str, critic: str) -> None:
    x, y = gaussians(1.0, 6000, dim=1)
    options = {"steps": 100, "hidden_dim": 32, "batch_size": 64, "learning_rate": 0.01}
    result = estimate_mutual_information(x, y, estimator, critic, test_pairs=500, **options)
    assert result.nats == pytest.approx(1.0, rel=1 / 6)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_independent_features_have_about_none(estimator: str, critic: str) -> None:
    x, y = gaussians(0.0, 4000, dim=2)
    result = estimate_mutual_information(
        x, y, estimator, critic, steps=30, hidden_dim=16, batch_size=64, test_pairs=500
    )
    assert result.nats == pytest.approx(0.0, abs=0.05)


def test_infonce_of_equal_features_stays_below_its_upper_limit_and_the_others_have_none() -> None:
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    results = {
        name: estimate_mutual_information(
            x, x, name, steps=100, hidden_dim=32, batch_size=64, learning_rate=0.01, test_pairs=50
        )
        for name in ESTIMATORS
    }
    assert results["infonce"].upper_limit == pytest.approx(math.log(50))
    assert 0.8 * math.log(50) < results["infonce"].nats <= math.log(50)
    assert results["nwj"].upper_limit == results["mine"].upper_limit == math.inf


def test_result_is_of_pairs_that_were_not_trained_on() -> None:
    # Few pairs of many dimensions: learned by heart, though there is nothing to learn.
    x, y = gaussians(0.0, 300, dim=64)
    result = estimate_mutual_information(
        x, y, steps=100, hidden_dim=64, batch_size=64, learning_rate=3e-3, test_pairs=60
    )
    assert result.train_nats > 0.15
    assert result.nats < 0.05


def test_the_state_with_the_best_validation_bound_is_taken() -> None:
    # Many steps on few pairs: the last state, which knows them by heart, is far below zero.
    x, y = gaussians(1.0, 400, dim=4)
    result = estimate_mutual_information(
        x, y, steps=300, hidden_dim=64, batch_size=64, learning_rate=5e-3, test_pairs=100
    )
    assert result.nats > 0.2


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_seeds_give_equal_estimates_and_others_others(estimator: str, critic: str) -> None:
    x, y = gaussians(1.0, 500, dim=2)
    state = torch.get_rng_state()
    first = estimate_mutual_information(x, y, estimator, critic, seed=3, **QUICK)
    torch.rand(5)
    second = estimate_mutual_information(x, y, estimator, critic, seed=3, **QUICK)
    other = estimate_mutual_information(x, y, estimator, critic, seed=4, **QUICK)
    assert first == second
    assert first.nats != other.nats
    torch.set_rng_state(state)
    estimate_mutual_information(x, y, estimator, critic, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)


def test_generators_of_other_devices_are_left_alone(monkeypatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.mps, "manual_seed", seeds.append)
    monkeypatch.setattr(torch.xpu, "manual_seed_all", seeds.append)
    x, y = gaussians(1.0, 500, dim=2)
    state = torch.get_rng_state()
    estimate_mutual_information(x, y, **QUICK)
    assert seeds == []
    assert torch.equal(torch.get_rng_state(), state)


class Waits(TorchDispatchMode):
    """Counts what would make a GPU wait; a meta tensor stands for one of the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.indices = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten.index.Tensor and args[0].is_meta:
            self.indices += 1
            if any(not index.is_meta for index in args[1]):
                self.waits.append("an index copied to the device")
        if func is torch.ops.aten._to_copy.default and not args[0].is_meta:
            to_meta = torch.device(kwargs.get("device") or "cpu").type == "meta"
            if to_meta and not kwargs.get("non_blocking"):
                self.waits.append("a blocking copy to the device")
        return func(*args, **kwargs)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_training_step_makes_a_gpu_wait(estimator: str, monkeypatch) -> None:
    x, y = gaussians(1.0, 500, dim=2)
    waits_of_steps: list[int] = []
    draw_batches = mutual_information._draw_batches

    def noted_batches(*args):
        for batch in draw_batches(*args):
            waits_of_steps.append(len(mode.waits))
            yield batch

    monkeypatch.setattr(mutual_information, "_draw_batches", noted_batches)
    # Steps on the meta device are slow: a short warm-up, and a new order in every second step.
    monkeypatch.setattr(mutual_information, "_WARM_UP", 0.2)
    # A value of a meta tensor is an error: it comes when the validation pairs are first looked at.
    with Waits() as mode, pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        estimate_mutual_information(
            x, y, estimator, steps=40, batch_size=150, hidden_dim=8, device="meta"
        )
    # Of the 40 steps NWJ and MINE have 8 for their warm-up: a tenth of the rest, rounded up, is 4.
    assert len(waits_of_steps) == (4 if estimator == "infonce" else 8 + 4)
    assert mode.indices > 2 * len(waits_of_steps)
    assert set(waits_of_steps) == {waits_of_steps[0]}


@pytest.mark.parametrize("estimator", ["nwj", "mine"])
def test_critics_that_warm_up_by_infonce_find_more_of_many_nats(
    estimator: str, monkeypatch
) -> None:
    x, y = gaussians(6.0, 8000, dim=20)
    options = {"steps": 160, "hidden_dim": 64, "batch_size": 128, "learning_rate": 3e-3}
    options["test_pairs"] = 1000
    warm = estimate_mutual_information(x, y, estimator, **options)
    monkeypatch.setattr(mutual_information, "_WARM_UP", 0.0)
    cold = estimate_mutual_information(x, y, estimator, **options)
    assert cold.nats + 0.3 < warm.nats < 6


@pytest.mark.parametrize("estimator", ["nwj", "mine"])
def test_a_critic_that_is_overconfident_after_the_warm_up_starts_anew_without(
    estimator: str, monkeypatch
) -> None:
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    options = {"steps": 100, "hidden_dim": 64, "batch_size": 64, "learning_rate": 3e-3}
    result = estimate_mutual_information(x, x.abs(), estimator, **options)
    assert result.nats > 1
    monkeypatch.setattr(mutual_information, "_WARM_UP", 0.0)
    assert result == estimate_mutual_information(x, x.abs(), estimator, **options)
    # It would have been worse.
    monkeypatch.setattr(mutual_information, "_WARM_UP", 0.8)
    monkeypatch.setattr(mutual_information, "_MAX_SHORTFALL", math.inf)
    assert estimate_mutual_information(x, x.abs(), estimator, **options).nats < result.nats - 1


def test_nwj_starts_from_the_constant_that_suits_its_critic_best() -> None:
    # Steps of 1e-9, which cannot move the constant.
    x, y = gaussians(1.0, 500, dim=2)
    options = {**QUICK, "learning_rate": 1e-9}
    nwj = estimate_mutual_information(x, y, "nwj", **options)
    mine = estimate_mutual_information(x, y, "mine", **options)
    assert nwj.nats == pytest.approx(mine.nats, abs=1e-4)


def test_shift_and_scale_of_the_features_change_nothing() -> None:
    x, y = gaussians(1.0, 500, dim=2)
    plain = estimate_mutual_information(x, y, **QUICK)
    moved = estimate_mutual_information(x.double() * 1e-9 + 1e-3, 1e9 * y - 1e10, **QUICK)
    assert moved.nats == pytest.approx(plain.nats, abs=1e-3)


def test_constant_dimensions_carry_nothing() -> None:
    _, y = gaussians(1.0, 500, dim=2)
    result = estimate_mutual_information(torch.full((500, 1), 3.3), y, **QUICK)
    assert result.nats == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_floating_point_type_are_taken(dtype: torch.dtype) -> None:
    x, y = gaussians(1.0, 500, dim=2)
    expected = estimate_mutual_information(x.to(dtype).float(), y.to(dtype).float(), **QUICK)
    result = estimate_mutual_information(x.to(dtype), y.to(dtype), **QUICK)
    assert result.nats == pytest.approx(expected.nats, abs=1e-3)


def test_features_are_left_as_they_were_and_may_require_gradients() -> None:
    x, y = gaussians(1.0, 500, dim=2)
    before = x.clone()
    estimate_mutual_information(x.requires_grad_(), y, **QUICK)
    assert torch.equal(x, before)
    assert x.grad is None


def test_progress_bar_names_the_estimator(capsys) -> None:
    x, y = gaussians(1.0, 500, dim=2)
    estimate_mutual_information(x, y, progress=True, **QUICK)
    assert "infonce, separable" in capsys.readouterr().out


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "InfoNCE"}, "^estimator must be 'infonce' or 'nwj' or 'mine', got 'InfoN"),
        ({"critic": "bilinear"}, "^critic must be 'separable' or 'concatenated', got 'bilin"),
        ({"steps": 0}, r"^steps must be at least 1, got 0\."),
        ({"hidden_dim": -1}, r"^hidden_dim must be at least 1, got -1\."),
        ({"batch_size": 1}, r"^batch_size must be at least 2, got 1\."),
        ({"learning_rate": 0.0}, r"^learning_rate must be .* got 0\.0\."),
        ({"learning_rate": math.nan}, r"^learning_rate must be .* got nan\."),
        ({"test_pairs": 1}, r"^test_pairs must be .* got 1\."),
        ({"test_pairs": 50}, r"^test_pairs must be .* with 50 val.* of the 100 pairs .* got 50\."),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, object], message: str) -> None:
    x, y = gaussians(1.0, 100, dim=2)
    with pytest.raises(ValueError, match=message):
        estimate_mutual_information(x, y, **options)


@pytest.mark.parametrize(
    ("x_shape", "y_shape"),
    [
        ((10, 2), (9, 2)),
        ((10,), (10, 2)),
        ((10, 2), (10, 0)),
        ((0, 2), (0, 2)),
        ((2, 3, 4), (2, 3)),
    ],
)
def test_features_that_do_not_fit_together_are_refused(x_shape, y_shape) -> None:
    with pytest.raises(ValueError, match=r"^x and y must have shapes .* got \("):
        estimate_mutual_information(torch.ones(x_shape), torch.ones(y_shape))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(wrong: float) -> None:
    x, y = gaussians(1.0, 100, dim=2)
    y[3, 1] = wrong
    with pytest.raises(ValueError, match=r"^y has values that are not finite\."):
        estimate_mutual_information(x, y)


def test_features_of_integers_are_refused() -> None:
    x, _ = gaussians(1.0, 100, dim=2)
    with pytest.raises(ValueError, match=r"^y must be of floating point numbers, got torch\.int64"):
        estimate_mutual_information(x, torch.arange(200).view(100, 2))


def test_a_training_that_diverges_says_so() -> None:
    x, y = gaussians(1.0, 500, dim=2)
    with pytest.raises(ValueError, match=r"diverged.*Lower learning_rate=1e\+30"):
        estimate_mutual_information(x, y, **QUICK, learning_rate=1e30)
