"""Estimates of the mutual information of two sets of features: lower bounds by trained critics."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixco_lightly.evaluation.critics import CRITICS, sum_all_scores
from mixco_lightly.evaluation.information_bounds import (
    BOUNDS,
    ScoreSums,
    infonce_bound,
    log_mean_negative,
    mine_objective,
    sum_scores,
    symmetric_infonce,
)

_EMA_RATE = 0.01  # of MINE's running mean
_MAX_GRADIENT_NORM = 1.0
_WARM_UP = 0.8  # fraction of the steps in which NWJ's and MINE's critics maximise InfoNCE
_MAX_SHORTFALL = 0.2  # nats that a bound may lie below InfoNCE after a warm-up
_CHECKPOINTS = 10  # how often the bound on the validation pairs is computed


class MutualInformation(NamedTuple):
    """A lower bound of the mutual information of two feature sets.

    Attributes:
        nats: The bound on the test pairs, which neither trained nor chose the critic.
        upper_limit: The largest value that the estimator can return: ln K for InfoNCE with K test
            pairs, otherwise infinity.
        train_nats: The bound on as many training pairs. If it is far above ``nats``, the critic
            overfits: use more pairs, fewer steps or fewer hidden units.
    """

    nats: float
    upper_limit: float
    train_nats: float


def estimate_mutual_information(
    x: Tensor,
    y: Tensor,
    estimator: str = "infonce",
    critic: str = "separable",
    *,
    steps: int = 1000,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    hidden_dim: int | None = None,
    test_pairs: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> MutualInformation:
    """Estimates the mutual information of paired features by a lower bound.

    The function trains a critic on most of the pairs to maximise the bound. It evaluates ten
    states of the critic on validation pairs (four batches, at most ``test_pairs``), keeps the one
    with the largest bound, and returns that critic's bound on ``test_pairs`` other pairs. All three
    bounds hold for every critic, up to the noise of the estimate; a poor critic gives a low bound.

    For NWJ and MINE the first 80% of the steps maximise InfoNCE over rows and columns. It has the
    same optimal critic up to a constant, and less noisy gradients: without this warm-up MINE was
    18% too low at 8 nats. A few negatives with far too high scores hardly change InfoNCE but ruin
    NWJ and MINE. This happens on features that nearly identify their image. If on training pairs
    the bound ends more than 0.2 nats below InfoNCE, a new critic is trained by its own bound alone.

    Which estimator to choose: InfoNCE has the least variance, but cannot exceed ln K for
    K = ``test_pairs`` and falls short of the true value well below that. NWJ and MINE have no such
    limit, but vary at many nats, and MINE may be too high. Use several seeds with them.

    The critics have two hidden layers with ReLU. For K pairs a separable critic needs K forward
    passes, a concatenated one K squared, hence its smaller default batches.

    Args:
        x: Features, shape (N, D_x), any floating point dtype. Each dimension is standardised.
        y: Features, shape (N, D_y); row i belongs with row i of ``x``.
        estimator: "infonce"; "nwj"; or "mine", Donsker-Varadhan with MINE's gradient.
        critic: "separable" or "concatenated".
        steps: Training steps of Adam, with a cosine schedule and clipped gradients.
        batch_size: Pairs in a step, capped at the number of training pairs. Default: 512
            separable, 128 concatenated. Estimates of many nats need large batches most.
        learning_rate: Initial learning rate.
        hidden_dim: Hidden units of each layer; a separable critic's embeddings have a quarter as
            many dimensions. Default: 256 separable, 128 concatenated.
        test_pairs: Number K of held-out pairs. Default: a fifth of all pairs, at most 16384
            separable, 2048 concatenated.
        seed: Seed of the split, of the critic's weights and of the order.
        device: Where to run. Default: the device of ``x``.
        progress: Whether to show a progress bar.

    Returns:
        The bound in nats, its upper limit, and the bound on training pairs.

    Raises:
        ValueError: If the estimator or the critic is unknown, the features do not match or are not
            finite, a number is not positive, there are too few pairs, or the training diverges.

    Examples:
        >>> import torch
        >>> from mixco_lightly import estimate_mutual_information
        >>> x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> estimate_mutual_information(x, -x, steps=30, batch_size=128).nats > 1
        True
    """
    for name, choice, known in [
        ("estimator", estimator, list(BOUNDS)),
        ("critic", critic, list(CRITICS)),
    ]:
        if choice not in known:
            raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {choice!r}.")
    _check_features(x, y)
    if batch_size is None:
        batch_size = 512 if critic == "separable" else 128
    if hidden_dim is None:
        hidden_dim = 256 if critic == "separable" else 128
    if test_pairs is None:
        test_pairs = min(len(x) // 5, 16384 if critic == "separable" else 2048)
    for name, number in [("steps", steps), ("hidden_dim", hidden_dim), ("batch_size", batch_size)]:
        if number < 1 + (name == "batch_size"):
            raise ValueError(f"{name} must be at least {1 + (name == 'batch_size')}, got {number}.")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}.")
    validation_pairs = min(test_pairs, 4 * batch_size)
    if not 2 <= test_pairs <= len(x) - validation_pairs - 2:
        raise ValueError(
            f"test_pairs must be at least 2 and, with {validation_pairs} validation pairs, leave 2 "
            f"of the {len(x)} pairs to train on, got {test_pairs}."
        )
    settings: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "hidden_dim": hidden_dim,
        "test_pairs": test_pairs,
        "validation_pairs": validation_pairs,
        "seed": seed,
        "device": torch.device(device) if device is not None else x.device,
        "progress": progress,
    }
    warm_up = 0 if estimator == "infonce" else int(_WARM_UP * steps)
    result = _train_and_test(x, y, estimator, critic, warm_up=warm_up, **settings)
    if result is None:
        result = _train_and_test(x, y, estimator, critic, warm_up=0, **settings)
        assert result is not None
    return result


def _train_and_test(
    x: Tensor,
    y: Tensor,
    estimator: str,
    critic: str,
    *,
    warm_up: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    hidden_dim: int,
    test_pairs: int,
    validation_pairs: int,
    seed: int,
    device: torch.device,
    progress: bool,
) -> MutualInformation | None:
    """Returns the bound of a critic, or None if the warm-up by InfoNCE made it overconfident."""
    bound = BOUNDS[estimator]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    sizes = [test_pairs, validation_pairs, len(x) - test_pairs - validation_pairs]
    test, validation, train = order.split(sizes)
    x, y = (_standardise(part.detach().cpu().double(), train).to(device) for part in (x, y))
    test, validation, train = (rows.to(device) for rows in (test, validation, train))

    # torch.manual_seed would also seed the GPUs; the weights need the CPU's generator only.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        network = CRITICS[critic](x.shape[1], y.shape[1], hidden_dim).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def sums_of(rows: Tensor) -> ScoreSums:
        return sum_all_scores(network, x[rows], y[rows])

    best, best_state = -math.inf, copy.deepcopy(network.state_dict())
    log_running_mean: Tensor | None = None
    batches: Iterable[Tensor] = _draw_batches(train, batch_size, steps, generator)
    if progress:
        from rich.progress import track

        batches = track(batches, description=f"{estimator}, {critic}", total=steps)
    for step, batch in enumerate(batches, start=1):
        if 0 < warm_up == step - 1:
            # InfoNCE leaves the constant open: set it to NWJ's optimum for this critic.
            log_mean = log_mean_negative(sums_of(train[:validation_pairs]))
            network.constant.data += 1 - log_mean
        scores = torch.cat(list(network.score_blocks(x[batch], y[batch])))  # k x k
        sums = sum_scores(scores)
        if step <= warm_up:
            objective = symmetric_infonce(scores)
        elif estimator == "mine":
            log_mean = log_mean_negative(sums).detach()
            if log_running_mean is None:
                log_running_mean = log_mean
            log_running_mean = torch.logaddexp(
                log_running_mean + math.log1p(-_EMA_RATE), log_mean + math.log(_EMA_RATE)
            )
            objective = mine_objective(sums, log_running_mean)
        else:
            objective = bound(sums)
        optimizer.zero_grad()
        (-objective).backward()
        nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        own, all_own = step - warm_up, steps - warm_up
        if own > 0 and own * _CHECKPOINTS // all_own > (own - 1) * _CHECKPOINTS // all_own:
            value = bound(sums_of(validation)).item()
            if best < value < math.inf:
                best, best_state = value, copy.deepcopy(network.state_dict())
    if best == -math.inf and warm_up == 0:
        raise ValueError(
            f"The critic diverged: its bound was never finite. Lower learning_rate={learning_rate}."
        )
    network.load_state_dict(best_state)
    # A batch, or the validation pairs, may have none of the few negatives with too high scores.
    train_sums = sums_of(train[:test_pairs])
    train_nats = bound(train_sums).item()
    if warm_up > 0 and not train_nats > infonce_bound(train_sums) - _MAX_SHORTFALL:
        return None
    upper_limit = math.log(test_pairs) if estimator == "infonce" else math.inf
    return MutualInformation(bound(sums_of(test)).item(), upper_limit, train_nats)


def _draw_batches(
    rows: Tensor, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yields full batches of distinct rows, in a new order on each pass."""
    batch_size = min(batch_size, len(rows))
    while True:
        # Indices on the CPU would make a GPU wait in each step.
        order = torch.randperm(len(rows), generator=generator).to(rows.device, non_blocking=True)
        order = rows[order]
        for batch in order[: len(rows) // batch_size * batch_size].split(batch_size):
            if steps == 0:
                return
            steps -= 1
            yield batch


def _standardise(features: Tensor, train: Tensor) -> Tensor:
    std, mean = torch.std_mean(features[train], dim=0, correction=0)
    largest = features[train].abs().amax(dim=0)
    # A constant feature carries no information; it becomes zero.
    return ((features - mean) / std.where(std > 1e-6 * largest, torch.inf)).float()


def _check_features(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or not x.numel() or not y.numel():
        raise ValueError(
            "x and y must have shapes (N, D_x) and (N, D_y) with N, D_x, D_y > 0, got "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
    for name, part in [("x", x), ("y", y)]:
        if not part.is_floating_point():
            raise ValueError(f"{name} must be of floating point numbers, got {part.dtype}.")
        if not part.isfinite().all():
            raise ValueError(f"{name} has values that are not finite.")
