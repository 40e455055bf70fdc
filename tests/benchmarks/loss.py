"""Time and extra memory of one forward and backward of the loss, beside Lightly's and the authors'.

    python tests/benchmarks/loss.py                                all sizes, about 15 minutes
    python tests/benchmarks/loss.py --check                        only what has a limit, 3 minutes
    python tests/benchmarks/loss.py --output loss.json --plot docs/loss.png

The arms take turns within one run, and the ratios of their medians count. An arm is what one
training step does with projections that are there: normalise, compare, backward, and enqueue.

    lightly   Lightly's NTXentLoss, the plain term only
    authors   the authors' MixCo formula: dense logits and dense soft labels of the mixtures
    plain     MixCoLoss without mixtures
    mixco     MixCoLoss with mixtures of half the batch (SimCLR: of both views)
    unmix     UnMixLoss with the same mixtures
    imix      IMixLoss with as many mixtures as images, and no plain images
    products  the matrix products alone that no exact method can do without

With --check the exit code is 1 when a ratio misses its limit.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightly.loss import NTXentLoss
from measure import median_seconds, peak_bytes
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softmax

from mixco_lightly import IMixLoss, KeyQueue, MixCoLoss, Mixture, UnMixLoss
from mixco_lightly.machine import has_fast_bfloat16

DIM = 128
QUEUES = [4096, 16384, 65536, 262144, 1048576]
BATCHES = [64, 256, 1024, 4096]
TEMPERATURE, MIX_TEMPERATURE = 0.2, 0.05  # the authors' for MoCo
ARMS = ["lightly", "authors", "plain", "mixco", "unmix", "imix", "products"]
Arms = dict[str, Callable[[], object]]
Result = dict[str, Any]


class AuthorsMixCo(nn.Module):
    """The steps of the authors' MoCo code (Lee-Gihun/MixCo-Mixup-Contrast at commit 8374aac).

    As theirs, it copies the queue for each term, because the queue is overwritten before the
    backward, has a dense matrix of soft labels, and takes the logarithm of a softmax.
    """

    def __init__(self, queue_length: int) -> None:
        super().__init__()
        self.queue = KeyQueue((queue_length, DIM))

    def forward(self, query: Tensor, key: Tensor, mixed: Tensor, mixture: Mixture) -> Tensor:
        query, key, mixed = normalize(query), normalize(key), normalize(mixed)

        positive = (query * key).sum(dim=1, keepdim=True)  # nc,nc->n1
        negative = query @ self.queue.keys.clone().T  # nc,kc->nk
        logits = torch.cat([positive, negative], dim=1)
        logits /= TEMPERATURE
        plain = cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))

        negative = mixed @ self.queue.keys.clone().T  # nc,kc->nk
        logits = torch.cat([mixed @ key.T, negative], dim=1)
        logits /= MIX_TEMPERATURE
        lam = mixture.lam
        labels = torch.cat([lam.diag(), (1 - lam).diag(), torch.zeros_like(negative)], dim=1)
        mix = -(labels * softmax(logits, dim=1).log()).sum(dim=1).mean()

        self.queue.enqueue(key.detach())
        return plain + mix


def draw(batch: int) -> tuple[list[Tensor], list[Mixture]]:
    """Projections of both views and of the mixtures of both."""
    half = batch // 2
    projections = [torch.randn(n, DIM, requires_grad=True) for n in (batch, batch, half, half)]
    pairs = torch.arange(half), torch.arange(half) + half
    return projections, [Mixture(torch.empty(half, 0), *pairs, torch.rand(half)) for _ in range(2)]


def moco_arms(batch: int, queue_length: int) -> Arms:
    """The arms with a queue; the keys have no gradient."""
    (query, key, mixed, _), (mixture, _) = draw(batch)
    key = key.detach()
    # Lightly takes the bank's dimension from the first batch; the first call is in the warm-up.
    lightly = NTXentLoss(TEMPERATURE, memory_bank_size=(queue_length, DIM))
    authors = AuthorsMixCo(queue_length)
    ours = MixCoLoss(TEMPERATURE, MIX_TEMPERATURE, memory_bank_size=(queue_length, DIM))
    unmix, imix = UnMixLoss(memory_bank_size=(1, DIM)), IMixLoss(memory_bank_size=(1, DIM))
    unmix.queue = imix.queue = ours.queue  # the longest take gigabytes
    images = torch.arange(batch)
    all_mixed = Mixture(torch.empty(batch, 0), images, images.flip(0), torch.rand(batch))

    def products() -> None:
        """Similarities, and sums of keys weighted by them: n = 1.5 batches, in cached blocks."""
        columns = torch.cat([query, mixed]).detach().T.contiguous()  # c x n
        block = columns.new_empty(2048, columns.shape[1])
        sums = torch.zeros_like(columns.T)
        for keys in ours.queue.keys.split(2048):
            weights = torch.mm(keys, columns, out=block)  # kc,cn->kn
            sums.addmm_(weights.T, keys)  # nk,kc->nc

    return {
        "lightly": lambda: lightly(query, key).backward(),
        "authors": lambda: authors(query, key, mixed, mixture).backward(),
        "plain": lambda: ours(query, key).backward(),
        "mixco": lambda: ours(query, key, mixed, mixture).backward(),
        "unmix": lambda: unmix(query, key, mixed, mixture).backward(),
        "imix": lambda: imix(query, key, all_mixed).backward(),
        "products": products,
    }


def simclr_arms(batch: int) -> Arms:
    """The arms without a queue, with the authors' temperatures for SimCLR."""
    (out0, out1, mixed0, mixed1), (mixture0, mixture1) = draw(batch)
    lightly, ours, unmix, imix = NTXentLoss(0.5), MixCoLoss(0.5, 0.5), UnMixLoss(0.5), IMixLoss(0.5)
    images = torch.arange(batch)
    all_mixed = Mixture(torch.empty(batch, 0), images, images.flip(0), torch.rand(batch))

    def products() -> None:
        """Logits, and their gradients for both sides: all views with all, mixtures with views."""
        for a, b in [(views, views), (half, view), (half, view)]:
            block = b.new_empty(512, len(b))
            sums = torch.zeros_like(b)
            for rows in a.split(512):
                logits = torch.mm(rows, b.T, out=block[: len(rows)])  # nc,mc->nm
                logits @ b  # nm,mc->nc
                sums.addmm_(logits.T, rows)  # nm,nc->mc

    views, view, half = torch.randn(2 * batch, DIM), torch.randn(batch, DIM), mixed0.detach()
    return {
        "lightly": lambda: lightly(out0, out1).backward(),
        "plain": lambda: ours(out0, out1).backward(),
        "mixco": lambda: ours(out0, out1, mixed0, mixture0, mixed1, mixture1).backward(),
        "unmix": lambda: unmix(out0, out1, mixed0, mixture0, mixed1, mixture1).backward(),
        "imix": lambda: imix(out0, out1, all_mixed).backward(),
        "products": products,
    }


def bfloat16_arms(batch: int, queue_length: int) -> Arms:
    """The arms with a queue, their forward under autocast to bfloat16 as in Lightning's AMP."""
    (query, key, mixed, _), (mixture, _) = draw(batch)
    key = key.detach()
    lightly = NTXentLoss(TEMPERATURE, memory_bank_size=(queue_length, DIM))
    ours = MixCoLoss(TEMPERATURE, MIX_TEMPERATURE, memory_bank_size=(queue_length, DIM))

    def under_autocast(criterion: nn.Module, *args: object) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion(*args)
        loss.backward()

    return {
        "lightly": lambda: under_autocast(lightly, query, key),
        "mixco": lambda: under_autocast(ours, query, key, mixed, mixture),
    }


def needed_bytes(arm: str, batch: int, queue_length: int) -> float:
    """About what a dense arm holds at once: Lightly 3.5 matrices of logits, the authors more."""
    return 4 * batch * queue_length * {"lightly": 3.5, "authors": 8}.get(arm, 0)


def measure(name: str, make: Callable[[], Arms], repeats: int, **facts: int) -> Result:
    """Times and memory of one setting."""
    free = 0.8 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    arms = {
        arm: run
        for arm, run in make().items()
        if needed_bytes(arm, facts["batch"], facts["queue"]) < free
    }
    seconds = median_seconds(arms, repeats)
    peaks = {arm: peak_bytes(run) for arm, run in arms.items()}
    return {
        "setting": name,
        **facts,
        "repeats": repeats,
        "milliseconds": {arm: 1e3 * value for arm, value in seconds.items()},
        "extra_megabytes": {arm: value / 1e6 for arm, value in peaks.items()},
    }


def settings(check: bool) -> list[Callable[[], Result]]:
    """What is measured, as functions to call one after another."""

    def moco(batch: int, queue: int, repeats: int) -> Callable[[], Result]:
        make = functools.partial(moco_arms, batch, queue)
        return functools.partial(measure, "moco", make, repeats, batch=batch, queue=queue)

    def simclr(batch: int, repeats: int) -> Callable[[], Result]:
        make = functools.partial(simclr_arms, batch)
        return functools.partial(measure, "simclr", make, repeats, batch=batch, queue=0)

    bfloat16 = functools.partial(bfloat16_arms, 256, 65536)
    checked = [
        moco(256, 65536, 21),
        functools.partial(measure, "moco, bf16 autocast", bfloat16, 3, batch=256, queue=65536),
        simclr(1024, 21),
    ]
    if check:
        return [*checked, growth]
    return [
        *[moco(256, queue, 15 if queue < 100_000 else 5) for queue in QUEUES if queue != 65536],
        *[moco(batch, 65536, 9 if batch < 1000 else 3) for batch in BATCHES if batch != 256],
        *[simclr(batch, 15 if batch < 2000 else 5) for batch in BATCHES if batch != 1024],
        *checked,
        growth,
    ]


def growth() -> Result:
    """The loss with mixtures at 65,536 and at sixteen times as many keys, in alternation."""
    arms = {str(queue): moco_arms(256, queue)["mixco"] for queue in (65536, 1048576)}
    seconds = median_seconds(arms, 9)
    return {
        "setting": "growth",
        "milliseconds": {arm: 1e3 * value for arm, value in seconds.items()},
        "extra_megabytes": {arm: peak_bytes(run) / 1e6 for arm, run in arms.items()},
    }


def limits(results: list[Result]) -> list[tuple[str, float, float]]:
    """Name, ratio and limit of each figure that has one."""

    def find(name: str, batch: int = 256) -> Result:
        (result,) = [
            r
            for r in results
            if r["setting"] == name and (r.get("batch"), r.get("queue")) in wanted(name, batch)
        ]
        return result

    def wanted(name: str, batch: int) -> list[tuple[int | None, int | None]]:
        return [(None, None)] if name == "growth" else [(batch, 0 if name == "simclr" else 65536)]

    moco, simclr = find("moco"), find("simclr", 1024)
    bfloat16, larger = find("moco, bf16 autocast"), find("growth")

    def ratio(result: Result, arm: str, base: str, figure: str = "milliseconds") -> float:
        return result[figure][arm] / result[figure][base]

    return [
        ("mixco / Lightly's plain loss, time", ratio(moco, "mixco", "lightly"), 0.42),
        ("mixco / the authors' formula, time", ratio(moco, "mixco", "authors"), 0.21),
        ("mixco / the matrix products, time", ratio(moco, "mixco", "products"), 1.25),
        ("unmix / mixco, time", ratio(moco, "unmix", "mixco"), 1.05),
        (
            "mixco / Lightly's plain loss, extra memory",
            ratio(moco, "mixco", "lightly", "extra_megabytes"),
            0.1,
        ),
        (
            "bf16 autocast: mixco / Lightly's plain loss, time",
            ratio(bfloat16, "mixco", "lightly"),
            0.20,
        ),
        (
            "SimCLR form, batch 1,024: mixco / Lightly's plain loss, time",
            ratio(simclr, "mixco", "lightly"),
            0.85,
        ),
        ("time at 16 times the queue", ratio(larger, "1048576", "65536"), 16.0),
        (
            "extra memory at 16 times the queue",
            ratio(larger, "1048576", "65536", "extra_megabytes"),
            1.01,
        ),
    ]


def print_results(results: list[Result], console: Console) -> None:
    """The table of times and memory; products' own memory says nothing."""
    table = Table(title=f"Loss, forward and backward, dim {DIM}: ms (extra MB)")
    for name in ["form", "batch", "queue", *ARMS, "mixco/lightly", "mixco/products"]:
        table.add_column(name, justify="right")
    for result in results:
        if result["setting"] == "growth":
            continue
        times, memory = result["milliseconds"], result["extra_megabytes"]
        cells = [
            (f"{times[arm]:,.1f}" + (f" ({memory[arm]:,.0f})" if arm != "products" else ""))
            if arm in times
            else "-"
            for arm in ARMS
        ]
        ratios = [
            f"{times['mixco'] / times[base]:.2f}" if base in times else "-"
            for base in ("lightly", "products")
        ]
        table.add_row(
            result["setting"], f"{result['batch']:,}", f"{result['queue']:,}", *cells, *ratios
        )
    console.print(table)


def plot(results: list[Result], path: Path) -> None:
    """Time and memory over the length of the queue, at batch 256."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    labels = {
        "authors": "authors' MixCo formula",
        "lightly": "Lightly's NTXentLoss (no mixtures)",
        "mixco": "MixCoLoss with mixtures",
        "plain": "MixCoLoss without mixtures",
        "products": "the matrix products alone",
    }
    rows = sorted(
        (r for r in results if r["setting"] == "moco" and r["batch"] == 256),
        key=lambda r: r["queue"],
    )
    for arm, label in labels.items():
        for axis, figure_name in zip(axes, ("milliseconds", "extra_megabytes"), strict=True):
            if arm == "products" and figure_name != "milliseconds":
                continue
            points = [(r["queue"], r[figure_name][arm]) for r in rows if arm in r[figure_name]]
            style = "--" if arm == "products" else "-"
            axis.loglog(*zip(*points, strict=True), style, marker="o", markersize=4, label=label)
    for axis, title in zip(axes, ("time, ms", "extra memory, MB"), strict=True):
        axis.set_xlabel("keys in the queue")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle("Contrastive loss, forward and backward, batch 256, dim 128, two CPU cores")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="measure only what has a limit")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    parser.add_argument("--plot", type=Path, help="picture of time and memory over the queue")
    args = parser.parse_args()

    torch.manual_seed(0)
    console = Console(width=160)
    results: list[Result] = []
    for run in track(settings(args.check), "measuring", console=Console(stderr=True)):
        results.append(run())
        if args.output:
            facts = {
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "fast_bfloat16": has_fast_bfloat16(torch.device("cpu")),
            }
            args.output.write_text(json.dumps({**facts, "results": results}, indent=1))
    print_results(results, console)
    if args.plot and not args.check:
        plot(results, args.plot)

    missed = 0
    for name, ratio, limit in limits(results):
        missed += ratio > limit
        verdict = "missed" if ratio > limit else "ok"
        console.print(f"{verdict:>6}  {ratio:6.3f}  (limit {limit:g})  {name}")
    (moco,) = [
        r for r in results if (r["setting"], r.get("batch"), r.get("queue")) == ("moco", 256, 65536)
    ]
    times = moco["milliseconds"]
    console.print(
        f"For comparison: the products alone / the authors' formula is "
        f"{times['products'] / times['authors']:.3f}, / Lightly's plain loss "
        f"{times['products'] / times['lightly']:.3f}. No exact method goes below."
    )
    if args.check and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
