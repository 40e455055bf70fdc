"""Small problems of the losses of mixtures: projections, mixtures, settings, and each loss on them.

A case is the name of a loss and a form: "moco" with a queue, "simclr" without.
"""

import torch
from torch import Tensor, nn

from mixco_lightly import IMixLoss, MixCoLoss, Mixture, UnMixLoss
from tests import reference
from tests.reference import Problem

FORMS = ["moco", "simclr"]
LOSSES = {"mixco": MixCoLoss, "imix": IMixLoss, "unmix": UnMixLoss}
CASES = [(loss, form) for loss in LOSSES for form in FORMS]
TEMPERATURES = [1.0, 0.5, 0.2, 0.05, 0.02, 0.01]
ROWS_ARE = ["random", "aligned", "duplicated", "anti-aligned"]


def criterion_of(p: Problem, loss: str = "mixco", **changes: object) -> nn.Module:
    """The loss in float64, with the problem's settings and queue."""
    settings = {
        "temperature": p.temperature,
        "memory_bank_size": 0 if p.queue is None else tuple(p.queue.shape),
    }
    if loss != "imix":
        settings["mix_weight"] = p.mix_weight
    if loss == "mixco":
        settings["mix_temperature"] = p.mix_temperature
    criterion = LOSSES[loss](**(settings | changes)).double()
    if p.queue is not None:
        criterion.queue.keys.copy_(p.queue)
    return criterion


def criterion_in_float32(p: Problem, loss: str = "mixco") -> nn.Module:
    return criterion_of(p, loss).float()


def arguments_of(p: Problem, loss: str = "mixco") -> tuple[Tensor | Mixture | None, ...]:
    """The arguments of the loss's forward; the first one is the query, the second the key."""
    return (p.mixed0, p.out1, p.mixture0) if loss == "imix" else p.args


def expected_of(p: Problem, loss: str = "mixco") -> float:
    """The loss by its loops."""
    if loss == "imix":
        return reference.imix(p)
    return (reference.mixco if loss == "mixco" else reference.unmix)(p).total


def leaves(p: Problem) -> Problem:
    """Copies of the projections as leaves that collect gradients."""
    fresh = {
        name: getattr(p, name).detach().clone().requires_grad_()
        for name in ("out0", "out1", "mixed0", "mixed1")
        if getattr(p, name) is not None
    }
    return p._replace(**fresh)


def gradients(p: Problem, loss: str = "mixco") -> list[Tensor]:
    """The gradients of the projections; i-Mix gives the keys of a queue none."""
    outs = [x for x in arguments_of(p, loss) if isinstance(x, Tensor)]
    if loss == "imix" and p.queue is not None:
        assert outs.pop(1).grad is None
    return [x.grad for x in outs]


def rows(n: int, dim: int, seed: int) -> Tensor:
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mixture(first: list[int], second: list[int], lam: list[float]) -> Mixture:
    images = torch.empty(len(lam), 0)  # the loss has no use for them
    lam = torch.tensor(lam, dtype=torch.float64)
    return Mixture(images, torch.tensor(first), torch.tensor(second), lam)


def with_lam(mixture: Mixture | None, lam: float) -> Mixture | None:
    return mixture and mixture._replace(lam=torch.full_like(mixture.lam, lam))


def problem(form: str, temperature: float = 0.5, mix_temperature: float = 0.2) -> Problem:
    """Five images, two mixtures (three for view 1); the last image of view 0 is not mixed."""
    mixed1, mixture1, queue = None, None, reference.units(rows(7, 4, 14))
    if form == "simclr":
        mixed1, mixture1 = rows(3, 4, 13), mixture([4, 0, 2], [1, 3, 0], [0.2, 1.0, 0.7])
    return Problem(
        rows(5, 4, 10),
        rows(5, 4, 11),
        rows(2, 4, 12),
        mixture([0, 1], [2, 3], [0.3, 0.9]),
        mixed1,
        mixture1,
        torch.tensor(queue, dtype=torch.float64) if form == "moco" else None,
        temperature,
        mix_temperature,
        1.0,
    )


def rounded_problem(form: str, temperature: float, rows_are: str, dtype: torch.dtype) -> Problem:
    """Projections that exist in ``dtype``; the queue's float32 values are exact in float64 too."""
    n, dim, k = 8, 16, 24
    out0, out1 = rows(n, dim, 1), rows(n, dim, 2)
    queue = torch.nn.functional.normalize(rows(k, dim, 5).float(), dim=1)
    if rows_are == "aligned":  # as late in training: positives near 1
        out1 = out0 + 0.3 * out1
    elif rows_are == "duplicated":  # the positive is also a negative
        out0[1], out1 = out0[0], out0.clone()
        queue[3] = torch.nn.functional.normalize(out0[:1].float(), dim=1)
    elif rows_are == "anti-aligned":  # the largest gap of logits, 2 / temperature
        out1 = -out0
        queue[3] = torch.nn.functional.normalize(out0[:1].float(), dim=1)
    pairs = mixture([0, 1, 2, 3], [4, 5, 6, 7], [0.0, 1.0, 0.3, 0.6])
    mixed0 = 0.5 * (out0[:4] + out0[4:])
    mixed1 = 0.5 * (out1[:4] + out1[4:]) if form == "simclr" else None
    half = [x if x is None else x.to(dtype) for x in (out0, out1, mixed0, mixed1)]
    return Problem(
        half[0],
        half[1],
        half[2],
        pairs._replace(lam=pairs.lam.float()),
        half[3],
        None if mixed1 is None else pairs._replace(lam=pairs.lam.float()),
        queue if form == "moco" else None,
        temperature,
        temperature,
        1.0,
    )
