"""The formulas as loops: plain Python floats, one anchor and one candidate at a time.

Nothing here is shared with the package but the shapes of the arguments. Sources: MixCo, Eqs. 1, 3
and 4, with the candidates and means of the authors' code; i-Mix and Un-Mix, from the authors' code;
MoCo, Eq. 1; SimCLR, Eq. 1; SupCon, Eq. 2 (L_out); SelfCon, with the sets of the authors' code.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mixco_lightly import Mixture


def unit(row: list[float]) -> list[float]:
    """Row of length one; a zero row stays zero."""
    norm = math.sqrt(math.fsum(x * x for x in row))
    return [x / norm for x in row] if norm > 0 else list(row)


def units(rows: Tensor) -> list[list[float]]:
    """Unit rows of a tensor of any dtype, in Python's float64."""
    return [unit(row) for row in rows.detach().double().tolist()]


def similarity(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def cross_entropy(logits: list[float], targets: list[float]) -> float:
    """-sum_j target_j * log(exp(logit_j) / sum_i exp(logit_i))."""
    denominator = math.fsum(math.exp(logit) for logit in logits)
    loss = 0.0
    for logit, target in zip(logits, targets, strict=True):
        loss -= target * math.log(math.exp(logit) / denominator)
    return loss


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> float:
    """MoCo: candidates are the query's own key and the queue, as it stands."""
    q, k, negatives = units(queries), units(keys), queue.double().tolist()
    losses = []
    for i in range(len(q)):
        logits, targets = [similarity(q[i], k[i]) / temperature], [1.0]
        for negative in negatives:
            logits.append(similarity(q[i], negative) / temperature)
            targets.append(0.0)
        losses.append(cross_entropy(logits, targets))
    return math.fsum(losses) / len(losses)


def mixed_cross_entropy(
    mixed: Tensor,
    keys: Tensor,
    first: Tensor,
    second: Tensor,
    lam: Tensor,
    temperature: float,
    queue: Tensor | None = None,
) -> float:
    """MixCo: candidates are all keys of the batch and the queue; two soft targets."""
    q, k = units(mixed), units(keys)
    negatives = [] if queue is None else queue.double().tolist()
    losses = []
    for m in range(len(q)):
        logits, targets = [], []
        for j in range(len(k)):
            target = 0.0
            if j == int(first[m]):
                target += float(lam[m])
            if j == int(second[m]):
                target += 1.0 - float(lam[m])
            logits.append(similarity(q[m], k[j]) / temperature)
            targets.append(target)
        for negative in negatives:
            logits.append(similarity(q[m], negative) / temperature)
            targets.append(0.0)
        losses.append(cross_entropy(logits, targets))
    return math.fsum(losses) / len(losses)


def weighted_info_nce(
    mixed: Tensor,
    keys: Tensor,
    first: Tensor,
    second: Tensor,
    lam: Tensor,
    temperature: float,
    queue: Tensor,
) -> float:
    """Un-Mix with MoCo: candidates are one of the two keys and the queue, once for each key."""
    q, k, negatives = units(mixed), units(keys), queue.double().tolist()
    losses = []
    for m in range(len(q)):
        in_queue = [similarity(q[m], negative) / temperature for negative in negatives]
        for source, weight in [(first[m], float(lam[m])), (second[m], 1.0 - float(lam[m]))]:
            logits = [similarity(q[m], k[int(source)]) / temperature, *in_queue]
            targets = [1.0] + [0.0] * len(negatives)
            losses.append(weight * cross_entropy(logits, targets))
    return math.fsum(losses) / len(q)


def mixed_nt_xent(
    mixed: Tensor,
    keys: Tensor,
    first: Tensor,
    second: Tensor,
    lam: Tensor,
    temperature: float,
) -> float:
    """Un-Mix with SimCLR: a mixture and one of its keys are each other's positive.

    Both are anchors; the candidates are all keys and all mixtures but the anchor.
    """
    z = units(keys) + units(mixed)
    n = len(keys)
    logits = [[similarity(a, b) / temperature for b in z] for a in z]
    losses = []
    for m in range(len(mixed)):
        for source, weight in [(first[m], float(lam[m])), (second[m], 1.0 - float(lam[m]))]:
            for anchor, positive in [(n + m, int(source)), (int(source), n + m)]:
                others = [j for j in range(len(z)) if j != anchor]
                targets = [1.0 if j == positive else 0.0 for j in others]
                loss = cross_entropy([logits[anchor][j] for j in others], targets)
                losses.append(weight * loss / 2)
    return math.fsum(losses) / len(mixed)


def nt_xent(out0: Tensor, out1: Tensor, temperature: float) -> float:
    """SimCLR: each projection is an anchor; all others of both views are its candidates."""
    views = [units(out0), units(out1)]
    losses = []
    for view in (0, 1):
        for i in range(len(views[view])):
            logits, targets = [], []
            for other_view in (0, 1):
                for j in range(len(views[other_view])):
                    if (other_view, j) == (view, i):
                        continue
                    s = similarity(views[view][i], views[other_view][j])
                    logits.append(s / temperature)
                    targets.append(1.0 if j == i else 0.0)
            losses.append(cross_entropy(logits, targets))
    return math.fsum(losses) / len(losses)


Output = tuple[int, int, int]  # of a view, an image and an exit


def positives_cross_entropy(
    z: dict[Output, list[float]],
    anchors: list[Output],
    is_positive: Callable[[Output, Output], bool],
    temperature: float,
) -> float:
    """SupCon: candidates are all outputs but the anchor.

    The mean is over the anchors that have a positive; without any it is 0.
    """
    losses = []
    for anchor in anchors:
        others = [output for output in z if output != anchor]
        positives = [output for output in others if is_positive(anchor, output)]
        if positives:
            logits = [similarity(z[anchor], z[other]) / temperature for other in others]
            targets = [(other in positives) / len(positives) for other in others]
            losses.append(cross_entropy(logits, targets))
    return math.fsum(losses) / len(losses) if losses else 0.0


class SelfConProblem(NamedTuple):
    """Features (views * B, E, D), ``labels`` of the B images, and settings of the loss."""

    method: str
    features: Tensor
    labels: list[int]
    temperature: float
    base_temperature: float
    alpha: float  # of the starred methods


MULTI_VIEW = ["SelfCon-M", "SelfCon-MU", "SelfCon-MU, both views", "SelfCon-M*", "SelfCon-MU*"]
SINGLE_VIEW = ["SelfCon-S", "SelfCon-SU", "SelfCon-S*", "SelfCon-SU*"]
ONE_EXIT = ["SupCon-S", "SupCon", "SimCLR"]
SELFCON_METHODS = [*SINGLE_VIEW, *MULTI_VIEW, *ONE_EXIT]


def selfcon(problem: SelfConProblem) -> float:
    """SelfCon, SupCon and SimCLR, each by its own sets."""
    method, features, labels, temperature, base_temperature, alpha = problem
    views, (n, exits, _) = num_views(method), features.shape
    images = n // views
    z = {
        (view, image, exit_): units(features[view * images + image])[exit_]
        for view in range(views)
        for image in range(images)
        for exit_ in range(exits)
    }

    def same_label(a: Output, b: Output) -> bool:
        return labels[a[1]] == labels[b[1]]

    def same_image(a: Output, b: Output) -> bool:
        return a[1] == b[1]

    def same_image_and_view(a: Output, b: Output) -> bool:
        return a[:2] == b[:2]

    is_positive = {
        "SelfCon-SU": same_image,
        "SelfCon-SU*": same_image,
        "SelfCon-MU": same_image_and_view,
        "SelfCon-MU, both views": same_image,
        "SelfCon-MU*": same_image,
        "SimCLR": same_image,
    }.get(method, same_label)
    if not method.endswith("*"):
        loss = positives_cross_entropy(z, list(z), is_positive, temperature)
    else:
        backbone = {output: row for output, row in z.items() if output[2] == exits - 1}
        subnetworks = [output for output in z if output[2] < exits - 1]
        loss = positives_cross_entropy(backbone, list(backbone), is_positive, temperature)
        loss += alpha * positives_cross_entropy(z, subnetworks, is_positive, temperature)
    return temperature / base_temperature * loss


def num_views(method: str) -> int:
    return 2 if method in [*MULTI_VIEW, "SupCon", "SimCLR"] else 1


def draw_selfcon(method: str, seed: int) -> SelfConProblem:
    """Random shapes, labels, settings and values; the same for the same seed."""
    rng = random.Random(seed)
    images, dim = rng.randint(2, 6), rng.randint(1, 17)
    exits = 1 if method in ONE_EXIT else rng.randint(2, 3)
    n = images * num_views(method)
    return SelfConProblem(
        method,
        draw_rows(rng, n * exits, dim).view(n, exits, dim),
        [rng.randint(-1, 3) for _ in range(images)],
        rng.choice([1.0, 0.5, 0.2, 0.1, 0.05]),
        rng.choice([0.07, 0.1, 1.0]),
        rng.choice([0.0, 0.3, 1.0, 2.0]),
    )


class Problem(NamedTuple):
    """Arguments of a loss of mixtures; ``queue`` is None for SimCLR, a mixture if missing."""

    out0: Tensor
    out1: Tensor
    mixed0: Tensor | None
    mixture0: Mixture | None
    mixed1: Tensor | None
    mixture1: Mixture | None
    queue: Tensor | None
    temperature: float
    mix_temperature: float
    mix_weight: float

    @property
    def args(self) -> tuple[Tensor | Mixture | None, ...]:
        """The arguments of ``MixCoLoss.forward`` and ``UnMixLoss.forward``."""
        return self[:6]


class Terms(NamedTuple):
    total: float
    contrast: float
    mix: float


def mixco(problem: Problem) -> Terms:
    """The MixCo loss of MoCo (with a queue) or of SimCLR (without), and its two terms."""

    def term(mixed: Tensor, mixture: Mixture, keys: Tensor) -> float:
        _, first, second, lam = mixture
        return mixed_cross_entropy(
            mixed, keys, first, second, lam, problem.mix_temperature, problem.queue
        )

    return two_terms(problem, term)


def unmix(problem: Problem) -> Terms:
    """The Un-Mix loss and its two terms; one temperature for both."""

    def term(mixed: Tensor, mixture: Mixture, keys: Tensor) -> float:
        _, first, second, lam = mixture
        if problem.queue is None:
            return mixed_nt_xent(mixed, keys, first, second, lam, problem.temperature)
        return weighted_info_nce(
            mixed, keys, first, second, lam, problem.temperature, problem.queue
        )

    return two_terms(problem, term)


def imix(problem: Problem) -> float:
    """The i-Mix loss of view 0's mixtures with view 1's keys."""
    p = problem
    _, first, second, lam = p.mixture0
    return mixed_cross_entropy(p.mixed0, p.out1, first, second, lam, p.temperature, p.queue)


def two_terms(p: Problem, term: Callable[[Tensor, Mixture, Tensor], float]) -> Terms:
    """The loss of the plain images, and the mean of a term over the mixtures of both views."""
    if p.queue is None:
        contrast = nt_xent(p.out0, p.out1, p.temperature)
    else:
        contrast = info_nce(p.out0, p.out1, p.queue, p.temperature)
    terms = [
        term(mixed, mixture, keys)
        for mixed, mixture, keys in [
            (p.mixed0, p.mixture0, p.out1),
            (p.mixed1, p.mixture1, p.out0),
        ]
        if mixed is not None and mixture is not None
    ]
    mix = math.fsum(terms) / len(terms) if terms else 0.0
    return Terms(contrast + p.mix_weight * mix, contrast, mix)


def draw_mixture(rng: random.Random, n: int, dim: int) -> tuple[Tensor, Mixture]:
    """Projections and indices of mixtures of ``n`` images; not only the pairs of ``mix_pairs``."""
    if rng.random() < 0.5:  # first half with second half; for odd n the last image stays out
        pairs = [(m, m + n // 2) for m in range(n // 2)]
    else:  # any pairs, any number of them
        pairs = [tuple(rng.sample(range(n), 2)) for _ in range(rng.randint(1, n + 2))]
    lam = [rng.choice([0.0, 1.0, rng.random(), rng.random()]) for _ in pairs]
    first, second = torch.tensor(pairs).T
    lam = torch.tensor(lam, dtype=torch.float64)
    images = torch.empty(len(pairs), 0)  # the loss has no use for them
    return draw_rows(rng, len(pairs), dim), Mixture(images, first, second, lam)


def draw_rows(rng: random.Random, n: int, dim: int) -> Tensor:
    """Gaussian rows in float64, each on a scale of its own."""
    rows = [[rng.gauss(0, 1) for _ in range(dim)] for _ in range(n)]
    scales = [[10 ** rng.uniform(-2, 2)] for _ in range(n)]
    return torch.tensor(rows, dtype=torch.float64).reshape(n, dim) * torch.tensor(
        scales, dtype=torch.float64
    )


def draw_problem(seed: int, with_queue: bool) -> Problem:
    """Random shapes, temperatures, weights and values; the same for the same seed."""
    rng = random.Random(seed)
    n, dim = rng.randint(1 if with_queue else 2, 9), rng.randint(1, 17)
    queue = None
    if with_queue:
        queue = torch.tensor(units(draw_rows(rng, rng.randint(1, 40), dim)), dtype=torch.float64)
    out0, out1 = draw_rows(rng, n, dim), draw_rows(rng, n, dim)
    mixed0 = mixture0 = mixed1 = mixture1 = None
    if n >= 2:  # one image alone has no partner
        mixed0, mixture0 = draw_mixture(rng, n, dim)
        if not with_queue and rng.random() < 0.8:
            mixed1, mixture1 = draw_mixture(rng, n, dim)
        if not with_queue and mixed1 is not None and rng.random() < 0.2:
            mixed0 = mixture0 = None
    temperatures = [1.0, 0.5, 0.2, 0.1, 0.05]
    return Problem(
        out0,
        out1,
        mixed0,
        mixture0,
        mixed1,
        mixture1,
        queue,
        rng.choice(temperatures),
        rng.choice(temperatures),
        rng.choice([1.0, 0.5, 2.0]),
    )
