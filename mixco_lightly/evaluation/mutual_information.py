"""Mutual information of two sets of features, as lower bounds with trained critics.

A critic scores a pair (x, y): high if the two belong together. Each bound compares the scores of
the K pairs of a batch with those of the K (K - 1) pairs that mix two of them. Shapes in the
comments: k rows of x, l rows of y, h hidden units.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_EMA_RATE = 0.01  # of MINE's running mean
_MAX_GRADIENT_NORM = 1.0
_WARM_UP = 0.8  # share of the steps in which NWJ's and MINE's critics learn by InfoNCE
_MAX_SHORTFALL = 0.2  # of a bound after a warm-up, in nats, below InfoNCE's
_CHECKPOINTS = 10  # how often the validation pairs are looked at
_BLOCK_ELEMENTS = 2**22  # scores (concatenated: times hidden units) at once where K is large


class MutualInformation(NamedTuple):
    """A lower bound of the mutual information of two feature sets.

    Attributes:
        nats: The bound on the test pairs, which neither the training nor the choice of the
            critic has seen.
        upper_limit: What the estimator cannot exceed: ln K for InfoNCE with K test pairs,
            otherwise infinity.
        train_nats: The bound on as many training pairs. Far above ``nats``, the critic has
            learned its pairs by heart: more pairs, fewer steps or fewer hidden units help.
    """

    nats: float
    upper_limit: float
    train_nats: float


class ScoreSums(NamedTuple):
    """What the bounds need of the scores of K x K pairs.

    Attributes:
        positive: Score of each x with its own y, shape (K,).
        negative_lse: Log-sum-exp of the scores of each x with the other K - 1 y, shape (K,).
    """

    positive: Tensor
    negative_lse: Tensor


def sum_scores(scores: Tensor, offset: int = 0) -> ScoreSums:
    """Sums up rows of the scores.

    Args:
        scores: Score of each x with each y, shape (k, l).
        offset: Column of the first row's own y.

    Returns:
        The sums of these k rows.
    """
    own = torch.arange(len(scores), device=scores.device).unsqueeze(1) + offset  # k x 1
    positive = scores.gather(1, own).squeeze(1)
    return ScoreSums(positive, scores.scatter(1, own, -math.inf).logsumexp(dim=1))


def _log_mean_negative(sums: ScoreSums) -> Tensor:
    k = len(sums.positive)
    return sums.negative_lse.logsumexp(dim=0) - math.log(k * (k - 1))


def infonce_bound(sums: ScoreSums) -> Tensor:
    """InfoNCE, 2018, https://arxiv.org/abs/1807.03748: at most ln K, of low variance."""
    k = len(sums.positive)
    log_sum = torch.logaddexp(sums.negative_lse, sums.positive)
    return math.log(k) + (sums.positive - log_sum).mean()


def nwj_bound(sums: ScoreSums) -> Tensor:
    """NWJ, 2010, https://arxiv.org/abs/0809.0853: its variance grows exponentially with the MI."""
    return sums.positive.mean() - (_log_mean_negative(sums) - 1).exp()


def donsker_varadhan_bound(sums: ScoreSums) -> Tensor:
    """The bound of MINE, 2018, https://arxiv.org/abs/1801.04062.

    For a finite number of pairs its mean may lie above the bound: the logarithm is that of an
    estimate.
    """
    return sums.positive.mean() - _log_mean_negative(sums)


def symmetric_infonce(scores: Tensor) -> Tensor:
    """InfoNCE of rows and of columns, of scores of shape (k, k): what critics warm up with.

    Each alone leaves the critic free by a function of x, or of y; both together, by a constant.
    """
    return (infonce_bound(sum_scores(scores)) + infonce_bound(sum_scores(scores.T))) / 2


_BOUNDS = {"infonce": infonce_bound, "nwj": nwj_bound, "mine": donsker_varadhan_bound}


def mine_objective(sums: ScoreSums, log_running_mean: Tensor) -> Tensor:
    """What MINE maximises: its gradient is that of its bound, but for the running mean.

    The bound's own gradient divides by the mean of the batch, which biases it; MINE (Section
    3.2) divides by a running mean.

    Args:
        sums: Scores of a batch.
        log_running_mean: Logarithm of the running mean of exp(score) over negatives, scalar.

    Returns:
        Scalar whose value has no meaning.
    """
    return sums.positive.mean() - (_log_mean_negative(sums) - log_running_mean).exp()


class SeparableCritic(nn.Module):
    """Inner product of two embeddings: K x K scores for the price of 2 K forward passes.

    Plus a constant, which only NWJ depends on: its optimum is the logarithm of the density ratio
    plus 1.
    """

    def __init__(self, x_dim: int, y_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.ones(()))
        self.embed_x, self.embed_y = (
            nn.Sequential(
                nn.Linear(dim, hidden_dim),
                nn.ReLU(),
                nn.Linear(hidden_dim, hidden_dim),
                nn.ReLU(),
                nn.Linear(hidden_dim, max(1, hidden_dim // 4)),
            )
            for dim in (x_dim, y_dim)
        )

    def score_blocks(self, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        """Scores of each x with each y, in blocks of rows of shape (k, l)."""
        columns = self.embed_y(y).T
        rows = max(1, _BLOCK_ELEMENTS // len(y))
        for block in self.embed_x(x).split(rows):
            yield block @ columns + self.constant  # kc,cl->kl


class ConcatenatedCritic(nn.Module):
    """A network of the pair: K x K forward passes, of which only the first layer is shared."""

    def __init__(self, x_dim: int, y_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.ones(()))
        # A linear layer of (x, y) is the sum of one of x and one of y.
        self.first_x = nn.Linear(x_dim, hidden_dim)
        self.first_y = nn.Linear(y_dim, hidden_dim, bias=False)
        self.rest = nn.Sequential(
            nn.ReLU(), nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1)
        )

    def score_blocks(self, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        """Scores of each x with each y, in blocks of rows of shape (k, l)."""
        hidden_y = self.first_y(y)  # l x h
        rows = max(1, _BLOCK_ELEMENTS // hidden_y.numel())
        for block in self.first_x(x).split(rows):
            # k x l x h -> k x l
            yield self.rest(block.unsqueeze(1) + hidden_y).squeeze(2) + self.constant


_CRITICS: dict[str, type[SeparableCritic] | type[ConcatenatedCritic]] = {
    "separable": SeparableCritic,
    "concatenated": ConcatenatedCritic,
}


@torch.no_grad()
def _sums_of(critic: SeparableCritic | ConcatenatedCritic, x: Tensor, y: Tensor) -> ScoreSums:
    """Sums over all pairs, in double precision and without all scores at once."""
    parts: list[ScoreSums] = []
    offset = 0
    for scores in critic.score_blocks(x, y):
        parts.append(sum_scores(scores, offset))
        offset += len(scores)
    return ScoreSums(*(torch.cat(column).double() for column in zip(*parts, strict=True)))


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

    A critic is trained on most of the pairs to maximise the bound; of ten states of it the one
    with the largest bound on validation pairs (four batches, at most ``test_pairs``) is taken; the
    result is its bound on ``test_pairs`` others. All three bounds hold for every critic, up to
    the noise of the estimate: a poor critic gives too little.

    For NWJ and MINE the first 80% of the steps maximise InfoNCE of rows and columns, which has the
    same best critic but for a constant, and gradients of less noise: at 8 nats MINE was 18% too low
    without. InfoNCE hardly minds a few negatives with scores far too high, which ruin the two other
    bounds: where, on training pairs, they end 0.2 nats below it, as they do on features that all
    but name their image, the critic starts anew and learns by its own bound alone.

    Which estimator? InfoNCE is the steadiest, but cannot exceed ln K for K = ``test_pairs`` and
    falls short of the truth well below that. NWJ and MINE have no such limit, but at many nats
    their figures vary and, for MINE, may be too high: use several seeds.

    The critics have two hidden layers with ReLU. A separable critic costs K forward passes for K
    pairs, a concatenated one K squared: hence its smaller default batches.

    Args:
        x: Features, shape (N, D_x), any floating point dtype. Dimensions are standardised.
        y: Features, shape (N, D_y); row i belongs with row i of ``x``.
        estimator: "infonce"; "nwj"; or "mine", Donsker-Varadhan with MINE's gradient.
        critic: "separable" or "concatenated".
        steps: Training steps, by Adam with a cosine schedule and clipped gradients.
        batch_size: Pairs in a step, at most as many as there are to train on. Default: 512
            separable, 128 concatenated. Large batches are what many nats need most.
        learning_rate: Initial learning rate.
        hidden_dim: Hidden units of each layer; a separable critic's embeddings have a quarter.
            Default: 256 separable, 128 concatenated.
        test_pairs: Held-out pairs K. Default: a fifth of all pairs, at most 16384 separable, 2048
            concatenated.
        seed: Seed of the split, of the critic's weights and of the order.
        device: Where to run. Default: where ``x`` is.
        progress: Whether to show a progress bar.

    Returns:
        The bound in nats, its upper limit, and the bound on training pairs.

    Raises:
        ValueError: If there is no such estimator or critic, if the features do not fit together
            or are not finite, if a number is not positive, if there are too few pairs, or if the
            training diverges.

    Examples:
        >>> import torch
        >>> from mixco_lightly import estimate_mutual_information
        >>> x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> estimate_mutual_information(x, -x, steps=30, batch_size=128).nats > 1
        True
    """
    for name, choice, known in [
        ("estimator", estimator, list(_BOUNDS)),
        ("critic", critic, list(_CRITICS)),
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
    """Returns the bound of a critic, or None if its warm-up by InfoNCE made it overconfident."""
    bound = _BOUNDS[estimator]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    sizes = [test_pairs, validation_pairs, len(x) - test_pairs - validation_pairs]
    test, validation, train = order.split(sizes)
    x, y = (_standardise(part.detach().cpu().double(), train).to(device) for part in (x, y))
    test, validation, train = (rows.to(device) for rows in (test, validation, train))

    # The weights come from the CPU's generator alone: torch.manual_seed would reseed GPUs too.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        network = _CRITICS[critic](x.shape[1], y.shape[1], hidden_dim).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def sums_of(rows: Tensor) -> ScoreSums:
        return _sums_of(network, x[rows], y[rows])

    best, best_state = -math.inf, copy.deepcopy(network.state_dict())
    log_running_mean: Tensor | None = None
    batches: Iterable[Tensor] = _draw_batches(train, batch_size, steps, generator)
    if progress:
        from rich.progress import track

        batches = track(batches, description=f"{estimator}, {critic}", total=steps)
    for step, batch in enumerate(batches, start=1):
        if 0 < warm_up == step - 1:
            # The constant that InfoNCE has left open: NWJ's best for this critic.
            log_mean = _log_mean_negative(sums_of(train[:validation_pairs]))
            network.constant.data += 1 - log_mean
        scores = torch.cat(list(network.score_blocks(x[batch], y[batch])))  # k x k
        sums = sum_scores(scores)
        if step <= warm_up:
            objective = symmetric_infonce(scores)
        elif estimator == "mine":
            log_mean = _log_mean_negative(sums).detach()
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
    # A few negatives among very many: a batch, or the validation pairs, would not show them.
    train_sums = sums_of(train[:test_pairs])
    train_nats = bound(train_sums).item()
    if warm_up > 0 and not train_nats > infonce_bound(train_sums) - _MAX_SHORTFALL:
        return None
    upper_limit = math.log(test_pairs) if estimator == "infonce" else math.inf
    return MutualInformation(bound(sums_of(test)).item(), upper_limit, train_nats)


def _draw_batches(
    rows: Tensor, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yields full batches of distinct rows, in a new order in each pass."""
    batch_size = min(batch_size, len(rows))
    while True:
        # One index on the CPU in each step would make a GPU wait.
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
    # A constant feature carries nothing: leave it at zero.
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
