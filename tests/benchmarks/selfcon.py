"""A step of SelfCon beside a step of SupCon: time and peak memory, in one run.

    python tests/benchmarks/selfcon.py --check --output selfcon.json

SelfCon-S has as many candidates and positives for each anchor as SupCon, from one view of each
image where SupCon has two. The arms take turns, and the ratios of their medians count. A step has
images that are there already: forward, loss, backward, SGD. Peak memory is that of a step beyond
the weights, their gradients and momentum.

    supcon      two views, the backbone alone
    selfcon-s   one view, the backbone and a sub-network
    selfcon-m   two views, the backbone and a sub-network
    supcon-s    one view, the backbone alone

With --check the exit code is 1 when a ratio of selfcon-s misses its limit.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from measure import median_seconds, peak_bytes
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mixco_lightly import MultiExitBackbone, SelfConLoss
from mixco_lightly.models.selfcon import SelfCon

# Number of views and exits.
ARMS = {
    "supcon": (2, ()),
    "selfcon-s": (1, (2,)),
    "selfcon-m": (2, (2,)),
    "supcon-s": (1, ()),
}
# SelfCon-S relative to SupCon.
LIMITS = {"seconds": 0.60, "peak_bytes": 0.65}


def create_step(
    backbone: str, image_size: int, stem: str, subnetwork: str, exits: tuple[int, ...]
) -> Callable[[list[Tensor], Tensor], None]:
    """A training step of the recipe's module."""
    torch.manual_seed(0)
    network = MultiExitBackbone(backbone, image_size, exits, subnetwork, stem)
    model = SelfCon(network, SelfConLoss()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(views: list[Tensor], labels: Tensor) -> None:
        model.training_step([views, labels, []], 0).backward()
        optimizer.step()
        # The gradients stay, so that they are not counted as a step's memory.
        optimizer.zero_grad(set_to_none=False)

    return step


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds and bytes of a step of each arm."""
    views = list(torch.randn(2, args.batch_size, 3, args.image_size, args.image_size))
    labels = torch.randint(args.classes, (args.batch_size,))
    arms = {
        name: functools.partial(
            create_step(args.backbone, args.image_size, args.stem, args.subnetwork, exits),
            views[:num_views],
            labels,
        )
        for name, (num_views, exits) in ARMS.items()
    }
    seconds = median_seconds(arms, args.repeats, warm_up=1)
    return {
        name: {"seconds": seconds[name], "peak_bytes": peak_bytes(run)}
        for name, run in arms.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="exit code 1 if a limit is missed")
    parser.add_argument("--backbone", default="resnet18", help="timm name")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--stem", default="small", choices=["auto", "timm", "small"])
    parser.add_argument("--subnetwork", default="fc", choices=["fc", "small", "same"])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    args = parser.parse_args()

    warnings.filterwarnings("ignore", message=".*self.log.*")
    results = measure(args)
    ratios = {
        name: {key: value / results["supcon"][key] for key, value in result.items()}
        for name, result in results.items()
    }
    table = Table(title=f"{args.backbone}, {args.image_size} pixels, batch {args.batch_size}")
    for column in ("arm", "step, ms", "/ supcon", "peak, MB", "/ supcon"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, result in results.items():
        table.add_row(
            name,
            f"{1e3 * result['seconds']:,.0f}",
            f"{ratios[name]['seconds']:.2f}",
            f"{result['peak_bytes'] / 1e6:,.0f}",
            f"{ratios[name]['peak_bytes']:.2f}",
        )
    console = Console()
    console.print(table)
    if args.output:
        settings = {name: value for name, value in vars(args).items() if name != "output"}
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        figures = {"results": results, "ratios_to_supcon": ratios}
        args.output.write_text(json.dumps({**facts, **settings, **figures}, indent=1) + "\n")

    missed = 0
    for key, limit in LIMITS.items():
        ratio = ratios["selfcon-s"][key]
        missed += ratio > limit
        verdict = "missed" if ratio > limit else "ok"
        console.print(f"{verdict:>6}  {ratio:6.3f}  (limit {limit:g})  selfcon-s / supcon, {key}")
    if args.check and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
