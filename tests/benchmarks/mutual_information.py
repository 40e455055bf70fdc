"""Estimates of mutual information where it is known: correlated Gaussians.

    python tests/benchmarks/mutual_information.py --check --output mutual_information.json
    python tests/benchmarks/mutual_information.py --critics separable --nats 8 --seeds 5

An estimate takes about half a minute of one core with a separable critic and a minute with a
concatenated one: an hour for the defaults.

Each of the 20 dimensions of y has the same correlation rho with its own dimension of x, and
-10 ln(1 - rho^2) nats are the truth. Each seed draws its pairs anew. The table has the mean and
the standard deviation over the seeds; beside it the bound that the true density ratio, the best
critic there is, has with equally many test pairs: an estimator can be that good and no better.

An arm is "ok" if its mean is within 15% of the truth, "out of reach" if the true density ratio is
not either (InfoNCE: at most ln K), and otherwise "missed". With --check the exit code is 1 if an
arm with a separable critic is "missed".
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mixco_lightly.evaluation.mutual_information import (
    _BOUNDS,
    _CRITICS,
    ScoreSums,
    estimate_mutual_information,
    sum_scores,
)

DIM = 20
LIMIT = 0.15
Result = dict[str, Any]


def draw_gaussians(nats: float, pairs: int, seed: int) -> tuple[Tensor, Tensor, float]:
    """Pairs whose mutual information is ``nats``, and their correlation."""
    rho = math.sqrt(1 - math.exp(-2 * nats / DIM))
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, pairs, DIM, dtype=torch.float64, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * noise, rho


def true_bound(estimator: str, x: Tensor, y: Tensor, rho: float) -> float:
    """The bound that ln p(x, y) / (p(x) p(y)), the density ratio, has on these pairs."""
    variance = 1 - rho**2
    norms = -(rho**2) / (2 * variance) * torch.stack([x, y]).square().sum(dim=2)
    parts = []
    for start in range(0, len(x), 512):
        rows = slice(start, start + 512)
        scores = rho / variance * x[rows] @ y.T + norms[0, rows].unsqueeze(1) + norms[1]
        scores += -DIM / 2 * math.log(variance) + (estimator == "nwj")
        parts.append(sum_scores(scores, start))
    return _BOUNDS[estimator](ScoreSums(*map(torch.cat, zip(*parts, strict=True)))).item()


def measure(
    nats: float, estimator: str, critic: str, pairs: int, seeds: int, options: dict[str, Any]
) -> Result:
    """One line of the table."""
    estimates, limits, start = [], [], time.perf_counter()
    test_pairs = options.get("test_pairs") or (16384 if critic == "separable" else 2048)
    for seed in range(seeds):
        x, y, rho = draw_gaussians(nats, pairs, seed)
        limits.append(true_bound(estimator, x[:test_pairs], y[:test_pairs], rho))
        options = {**options, "test_pairs": test_pairs}
        estimates.append(estimate_mutual_information(x, y, estimator, critic, seed=seed, **options))
    mean = statistics.mean(estimate.nats for estimate in estimates)
    reachable = statistics.mean(limits)
    verdict = "missed" if abs(reachable - nats) <= LIMIT * nats else "out of reach"
    return {
        "truth": nats,
        "estimator": estimator,
        "critic": critic,
        "test_pairs": test_pairs,
        "upper_limit": estimates[0].upper_limit,
        "true_density_ratio": reachable,
        "mean": mean,
        "std": statistics.stdev(e.nats for e in estimates) if seeds > 1 else math.nan,
        "train_mean": statistics.mean(estimate.train_nats for estimate in estimates),
        "error": mean / nats - 1,
        "seconds": (time.perf_counter() - start) / seeds,
        "verdict": "ok" if abs(mean - nats) <= LIMIT * nats else verdict,
    }


def print_results(results: list[Result], title: str, console: Console) -> None:
    """The table of the bounds."""
    table = Table(title=title)
    for name in ["truth", "estimator", "critic", "test pairs", "upper limit", "true ratio"]:
        table.add_column(name, justify="right")
    for name in ["mean", "std", "on training", "error", "seconds", "verdict"]:
        table.add_column(name, justify="right")
    for r in results:
        table.add_row(
            f"{r['truth']:g}",
            r["estimator"],
            r["critic"],
            f"{r['test_pairs']:,}",
            f"{r['upper_limit']:.2f}",
            f"{r['true_density_ratio']:.2f}",
            f"{r['mean']:.2f}",
            f"{r['std']:.2f}",
            f"{r['train_mean']:.2f}",
            f"{r['error']:+.0%}",
            f"{r['seconds']:.0f}",
            r["verdict"],
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nats", type=float, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--estimators", nargs="+", choices=list(_BOUNDS), default=list(_BOUNDS))
    parser.add_argument("--critics", nargs="+", choices=list(_CRITICS), default=list(_CRITICS))
    parser.add_argument("--pairs", type=int, default=200000, help="for training and tests")
    parser.add_argument("--seeds", type=int, default=3)
    for name in ["steps", "batch_size", "hidden_dim", "test_pairs"]:
        parser.add_argument(f"--{name}", type=int, help="default: the function's")
    parser.add_argument("--learning_rate", type=float, help="default: the function's")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a limit is missed")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    args = parser.parse_args()

    console = Console(width=140)
    names = ["steps", "batch_size", "hidden_dim", "test_pairs", "learning_rate"]
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    facts = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "pairs": args.pairs,
        "seeds": args.seeds,
        "options": options,
    }
    results: list[Result] = []
    for nats, critic, estimator in itertools.product(args.nats, args.critics, args.estimators):
        result = measure(nats, estimator, critic, args.pairs, args.seeds, options)
        results.append(result)
        console.print(
            f"{nats:g} nats, {estimator}, {critic}: {result['mean']:.2f} +- {result['std']:.2f}, "
            f"{result['seconds']:.0f} s each",
            highlight=False,
        )
        if args.output:  # after each: the whole takes long
            args.output.write_text(json.dumps({**facts, "results": results}, indent=1))
    title = f"{args.pairs:,} pairs of {DIM}-dimensional Gaussians, {args.seeds} seeds: nats"
    print_results(results, title, console)
    if args.check and any(r["verdict"] == "missed" and r["critic"] == "separable" for r in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
