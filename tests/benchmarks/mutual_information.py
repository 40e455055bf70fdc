"""Estimates of mutual information where it is known: correlated Gaussians.

    python tests/benchmarks/mutual_information.py --check --output mutual_information.json
    python tests/benchmarks/mutual_information.py --critics separable --nats 8 --seeds 5

There are two seeds with separable critics and one with concatenated ones, and an estimate takes a
minute or two of one core. A line of the table is written to --output as soon as it is there, and
the same command goes on after the last of them.

Each of the 20 dimensions of y has the same correlation rho with its own dimension of x, and
-10 ln(1 - rho^2) nats are the truth. Each seed draws its pairs anew. The table has the mean and
the standard deviation over the seeds; beside it the bound that the true density ratio, the best
critic there is, has with equally many test pairs: an estimator can be that good and no better.

An arm is "ok" if its mean is within 15% of the truth, "out of reach" if the true density ratio is
not either (InfoNCE: at most ln K), and otherwise "missed". With --check the exit code is 1 if an
arm is "missed".
"""

from __future__ import annotations

import argparse
import functools
import inspect
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

from mixco_lightly.evaluation import estimate_mutual_information
from mixco_lightly.evaluation.critics import CRITICS
from mixco_lightly.evaluation.information_bounds import BOUNDS, ScoreSums, sum_scores

DIM = 20
LIMIT = 0.15
Result = dict[str, Any]


def draw_gaussians(nats: float, pairs: int, seed: int) -> tuple[Tensor, Tensor, float]:
    """Pairs whose mutual information is ``nats``, and their correlation."""
    rho = math.sqrt(1 - math.exp(-2 * nats / DIM))
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, pairs, DIM, dtype=torch.float64, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * noise, rho


@functools.lru_cache
def true_sums(nats: float, pairs: int, seed: int, test_pairs: int) -> ScoreSums:
    """The true critic's scores of as many pairs: ln p(x, y) / (p(x) p(y)) + 1, as NWJ's optimum.

    The other two bounds do not depend on a constant.
    """
    x, y, rho = draw_gaussians(nats, pairs, seed)
    x, y = x[:test_pairs], y[:test_pairs]
    variance = 1 - rho**2
    norms = -(rho**2) / (2 * variance) * torch.stack([x, y]).square().sum(dim=2)
    parts = []
    for start in range(0, len(x), 512):
        rows = slice(start, start + 512)
        scores = rho / variance * x[rows] @ y.T + norms[0, rows].unsqueeze(1) + norms[1]
        parts.append(sum_scores(scores - DIM / 2 * math.log(variance) + 1, start))
    return ScoreSums(*map(torch.cat, zip(*parts, strict=True)))


def measure(
    nats: float, estimator: str, critic: str, pairs: int, seeds: int, options: dict[str, Any]
) -> Result:
    """One line of the table."""
    estimates, limits, start = [], [], time.perf_counter()
    test_pairs = options.get("test_pairs") or (16384 if critic == "separable" else 2048)
    for seed in range(seeds):
        x, y, _ = draw_gaussians(nats, pairs, seed)
        limits.append(BOUNDS[estimator](true_sums(nats, pairs, seed, test_pairs)).item())
        options = {**options, "test_pairs": test_pairs}
        estimates.append(estimate_mutual_information(x, y, estimator, critic, seed=seed, **options))
    mean = statistics.mean(estimate.nats for estimate in estimates)
    reachable = statistics.mean(limits)
    verdict = "missed" if abs(reachable - nats) <= LIMIT * nats else "out of reach"
    upper_limit = estimates[0].upper_limit
    return {
        "truth": nats,
        "estimator": estimator,
        "critic": critic,
        "seeds": seeds,
        "test_pairs": test_pairs,
        "upper_limit": upper_limit if math.isfinite(upper_limit) else None,
        "true_density_ratio": reachable,
        "mean": mean,
        "std": statistics.stdev(e.nats for e in estimates) if seeds > 1 else None,
        "train_mean": statistics.mean(estimate.train_nats for estimate in estimates),
        "error": mean / nats - 1,
        "seconds": (time.perf_counter() - start) / seeds,
        "verdict": "ok" if abs(mean - nats) <= LIMIT * nats else verdict,
    }


def identify(result: Result) -> tuple[Any, ...]:
    """What a line of the table is of."""
    return result["truth"], result["critic"], result["estimator"], result["seeds"]


def read_results(path: Path | None, facts: dict[str, Any]) -> list[Result]:
    """The lines that an earlier run with the same settings has written."""
    if path is None or not path.is_file():
        return []
    before = json.loads(path.read_text())
    results: list[Result] = before.pop("results")
    if before != facts:
        sys.exit(f"error: {path} has figures of other settings ({before}): move it away.")
    return results


def write_results(path: Path, facts: dict[str, Any], results: list[Result]) -> None:
    """Replaces the file in one move, so that a kill leaves a whole one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps({**facts, "results": results}, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def print_results(results: list[Result], title: str, console: Console) -> None:
    """The table of the bounds."""
    table = Table(title=title)
    names = ["truth", "estimator", "critic", "seeds", "test pairs", "upper limit", "true ratio"]
    for name in names:
        table.add_column(name, justify="right")
    for name in ["mean", "std", "on training", "error", "seconds", "verdict"]:
        table.add_column(name, justify="right")
    for r in results:
        table.add_row(
            f"{r['truth']:g}",
            r["estimator"],
            r["critic"],
            str(r["seeds"]),
            f"{r['test_pairs']:,}",
            "none" if r["upper_limit"] is None else f"{r['upper_limit']:.2f}",
            f"{r['true_density_ratio']:.2f}",
            f"{r['mean']:.2f}",
            "" if r["std"] is None else f"{r['std']:.2f}",
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
    parser.add_argument("--estimators", nargs="+", choices=list(BOUNDS), default=list(BOUNDS))
    parser.add_argument("--critics", nargs="+", choices=list(CRITICS), default=list(CRITICS))
    parser.add_argument("--pairs", type=int, default=200000, help="for training and tests")
    parser.add_argument("--seeds", type=int, help="default: 2 separable, 1 concatenated")
    for name in ["steps", "batch_size", "hidden_dim", "test_pairs"]:
        parser.add_argument(f"--{name}", type=int, help="default: the function's")
    parser.add_argument("--learning_rate", type=float, help="default: the function's")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a limit is missed")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    args = parser.parse_args()

    console = Console(width=140)
    names = ["steps", "batch_size", "hidden_dim", "test_pairs", "learning_rate"]
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    parameters = inspect.signature(estimate_mutual_information).parameters
    facts = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "pairs": args.pairs,
        "options": {name: options.get(name, parameters[name].default) for name in names},
    }
    # Lines of the table by what they are of.
    done = {identify(result): result for result in read_results(args.output, facts)}
    wanted = []
    for nats, critic, estimator in itertools.product(args.nats, args.critics, args.estimators):
        seeds = args.seeds or (2 if critic == "separable" else 1)
        key = (nats, critic, estimator, seeds)
        wanted.append(key)
        if key in done:
            continue
        done[key] = measure(nats, estimator, critic, args.pairs, seeds, options)
        if args.output:
            write_results(args.output, facts, list(done.values()))
        console.print(
            f"{nats:g} nats, {estimator}, {critic}: {done[key]['mean']:.2f}, "
            f"{done[key]['seconds']:.0f} s each",
            highlight=False,
        )
    results = [done[key] for key in wanted]
    title = f"{args.pairs:,} pairs of {DIM}-dimensional Gaussians: nats"
    print_results(results, title, console)
    if args.check and any(r["verdict"] == "missed" for r in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
