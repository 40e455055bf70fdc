"""Time of one training step, and of the whole recipe, beside Lightly's examples.

    python tests/benchmarks/train_step.py --check --data_dir cifar10-images
                                     what has a limit, about 8 minutes
    python tests/benchmarks/train_step.py --more
                                     other networks and sizes, about 40 minutes

Both add to the figures in --output FILE, and --plot draws all that are there.

The arms take turns within one run, and the ratios of their medians count. A step has images that
are there already: forward, loss, backward, SGD, momentum update, enqueue. The queue has 65,536
keys.

    lightly  Lightly's MoCo (SimCLR) example as published: torchvision's ResNet-18 or timm's ViT,
             float32, NCHW, its NTXentLoss, update_momentum
    naive    the same with mixtures and the authors' formula: dense logits and labels
    plain    this package's module without mixtures
    mixco    this package's module with mixtures
    imix, unmix halves, unmix reversed
             the other methods on MoCo, with ResNet-18 at 32 pixels; halves are MixCo's pairs,
             reversed Un-Mix's own
    compiled the same after torch.compile (--compile of the recipes; only with --more)

With --keep_memory glibc keeps freed memory, as in the recipes (mixco_lightly/machine.py), for all
arms alike; without it all of them take large tensors from the system anew.

With --check the exit code is 1 when a ratio misses its limit. --data_dir is an imagefolder of
CIFAR-10 at 32 pixels; without it the whole recipe is not measured.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from loss import AuthorsMixCo
from measure import median_seconds, peak_bytes
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from mixco_lightly import IMixLoss, MixCoLoss, Mixer, UnMixLoss, create_backbone
from mixco_lightly.backbones import Backbone
from mixco_lightly.models.imix import IMixMoCo
from mixco_lightly.models.moco import MoCo
from mixco_lightly.models.simclr import SimCLR

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

DIM, QUEUE = 128, 65536
NETWORKS = {"ResNet-18": "resnet18", "ViT-tiny": "vit_tiny_patch16_224"}
Arms = dict[str, Callable[[], object]]
Result = dict[str, Any]


def lightly_backbone(network: str, size: int) -> tuple[nn.Module, int]:
    """The example's ResNet-18, or timm's ViT in its place, and the width of its features."""
    if network == "ResNet-18":
        layers = list(torchvision.models.resnet18().children())[:-1]
        return nn.Sequential(*layers, nn.Flatten()), 512
    backbone = create_backbone(NETWORKS[network], size)
    return backbone, backbone.feature_dim


def lightly_moco(network: str, size: int, mixed: bool) -> Callable[[Tensor, Tensor], None]:
    """A step of Lightly's MoCo example; with mixtures, of the authors' formula in it."""
    backbone, width = lightly_backbone(network, size)
    encoder = nn.Sequential(backbone, MoCoProjectionHead(width, width, DIM))
    momentum_encoder = copy.deepcopy(encoder)
    deactivate_requires_grad(momentum_encoder)
    lightly, authors = NTXentLoss(0.2, memory_bank_size=(QUEUE, DIM)), AuthorsMixCo(QUEUE)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.06)

    def step(query_view: Tensor, key_view: Tensor) -> None:
        update_momentum(encoder, momentum_encoder, m=0.99)
        if mixed:
            mixture = Mixer()(query_view)
            out = encoder(torch.cat([query_view, mixture.images]))
        else:
            out = encoder(query_view)
        with torch.no_grad():
            keys = momentum_encoder(key_view)
        n = len(query_view)
        loss = authors(out[:n], keys, out[n:], mixture) if mixed else lightly(out, keys)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def lightly_simclr(network: str, size: int) -> Callable[[Tensor, Tensor], None]:
    """A step of Lightly's SimCLR example."""
    backbone, width = lightly_backbone(network, size)
    encoder = nn.Sequential(backbone, SimCLRProjectionHead(width, width, DIM))
    criterion = NTXentLoss(0.5)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.06)

    def step(view0: Tensor, view1: Tensor) -> None:
        criterion(encoder(view0), encoder(view1)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(method: str, network: str, size: int, mix_weight: float) -> MoCo | SimCLR:
    """This package's module as the recipe makes it."""
    backbone = create_backbone(
        NETWORKS[network], size, stem="timm" if network == "ResNet-18" else "auto"
    )
    if method == "moco":
        criterion = MixCoLoss(0.2, 0.2, mix_weight, memory_bank_size=(QUEUE, DIM))
        model: MoCo | SimCLR = MoCo(backbone, criterion, momentum=0.99)
    else:
        model = SimCLR(backbone, MixCoLoss(0.5, 0.5, mix_weight), DIM)
    return model.to(memory_format=torch.channels_last)


def family(network: str, size: int) -> dict[str, Callable[[Tensor, Tensor], None]]:
    """Steps of the other methods on MoCo, as their recipes make them."""
    queue = (QUEUE, DIM)

    def backbone() -> Backbone:
        return create_backbone(NETWORKS[network], size, stem="timm")

    def unmix() -> MoCo:
        return MoCo(backbone(), UnMixLoss(memory_bank_size=queue), momentum=0.99)

    hosts = {
        "imix": (IMixMoCo(backbone(), IMixLoss(memory_bank_size=queue), 0.99), Mixer.imix()),
        "unmix halves": (unmix(), Mixer.mixco()),
        "unmix reversed": (unmix(), Mixer.unmix()),
    }
    return {
        name: step_of(model.to(memory_format=torch.channels_last), mixer)
        for name, (model, mixer) in hosts.items()
    }


def step_of(
    model: MoCo | IMixMoCo | SimCLR, mixer: Mixer | None = None
) -> Callable[[Tensor, Tensor], None]:
    """A step of this package's module, mixing included; MixCo's mixing by default."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.06)
    views = (0, 1) if isinstance(model, SimCLR) else (0,)
    mix = mixer or Mixer.mixco()
    is_mixed = isinstance(model, IMixMoCo) or model.criterion.mix_weight > 0

    def step(view0: Tensor, view1: Tensor) -> None:
        both = [view0, view1]
        mixtures = [mix(both[view]) for view in views] if is_mixed else []
        model.training_step([both, None, mixtures], 0).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def network_only(model: MoCo | SimCLR, view0: Tensor, view1: Tensor) -> None:
    """Forward and backward of the networks that a step with mixtures has, and no more."""
    half = view0[: len(view0) // 2]
    if isinstance(model, MoCo):
        model.projection_head(model.backbone(torch.cat([view0, half]))).sum().backward()
        with torch.no_grad():
            model.projection_head_momentum(model.backbone_momentum(view1))
    else:
        for images in (view0, view1, half, half):
            model.projection_head(model.backbone(images)).sum().backward()
    model.zero_grad()


def measure_step(
    method: str,
    network: str,
    size: int,
    batch: int,
    repeats: int,
    compiled: bool = False,
    with_family: bool = False,
) -> Result:
    """Times of all arms of one network at one image size."""
    view0, view1 = torch.randn(2, batch, 3, size, size)
    mixco, plain = ours(method, network, size, 1.0), ours(method, network, size, 0.0)
    steps = {"plain": step_of(plain), "mixco": step_of(mixco)}
    if method == "moco":
        steps["lightly"] = lightly_moco(network, size, mixed=False)
        steps["naive"] = lightly_moco(network, size, mixed=True)
    else:
        steps["lightly"] = lightly_simclr(network, size)
    if with_family:
        steps |= family(network, size)
    if compiled:
        model = ours(method, network, size, 1.0)
        for part in model.children():
            part.compile()
        steps["compiled"] = step_of(model)
    arms: Arms = {name: functools.partial(step, view0, view1) for name, step in steps.items()}
    arms["network"] = functools.partial(network_only, mixco, view0, view1)
    seconds = median_seconds(arms, repeats, warm_up=1)
    return {
        "method": method,
        "network": network,
        "size": size,
        "batch": batch,
        "repeats": repeats,
        "milliseconds": {arm: 1e3 * value for arm, value in seconds.items()},
        "peak_megabytes": {
            arm: peak_bytes(arms[arm]) / 1e6 for arm in ("lightly", "plain", "mixco")
        },
    }


def measure_recipe(data_dir: Path, queue: int, steps: int) -> Result:
    """Images/s of MoCo's recipe with its loader, beside those of its networks alone."""
    from moco import MoCoConfig, create_model, recipe

    from mixco_lightly.training.pretraining import create_data
    from mixco_lightly.training.resolve import resolve

    config, backbone, images = resolve(
        MoCoConfig(
            dataset="imagefolder",
            data_dir=str(data_dir),
            image_size=32,
            backbone="resnet18",
            stem="timm",
            batch_size=256,
            memory_bank_size=queue,
        )
    )
    data = create_data(recipe, config, images)
    model = create_model(backbone, config)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.06)
    # The loader asks its trainer for the epoch and the process.
    trainer = type("Trainer", (), {"current_epoch": 0, "global_rank": 0, "world_size": 1})()
    data.trainer = trainer
    loader = iter(data.train_dataloader())
    recipe_seconds, network_seconds = [], []
    for index in range(-2, steps):
        start = time.perf_counter()
        batch = data.on_after_batch_transfer(next(loader), 0)
        model.training_step(batch, 0).backward()
        optimizer.step()
        optimizer.zero_grad()
        middle = time.perf_counter()
        network_only(model, *batch[0])
        if index >= 0:
            recipe_seconds.append(middle - start)
            network_seconds.append(time.perf_counter() - middle)
    recipe, network = statistics.median(recipe_seconds), statistics.median(network_seconds)
    return {
        "method": "recipe",
        "queue": queue,
        "augment": config.augment,
        "workers": config.num_workers,
        "recipe_images_per_second": 256 / recipe,
        "network_images_per_second": 256 / network,
    }


def settings(more: bool, data_dir: Path | None) -> list[functools.partial[Result]]:
    """What is measured, as functions to call one after another."""
    step = functools.partial
    if more:
        return [
            step(measure_step, "moco", "ResNet-18", 224, 64, 2),
            step(measure_step, "moco", "ViT-tiny", 224, 64, 2),
            step(measure_step, "moco", "ResNet-18", 32, 256, 7, compiled=True),
            step(measure_step, "simclr", "ResNet-18", 64, 256, 2),
            step(measure_step, "moco", "ViT-tiny", 32, 256, 2),
            step(measure_step, "moco", "ViT-tiny", 64, 256, 2),
            step(measure_step, "simclr", "ViT-tiny", 32, 256, 1),
            step(measure_step, "simclr", "ViT-tiny", 64, 256, 1),
            step(measure_step, "simclr", "ResNet-18", 224, 64, 1),
            step(measure_step, "simclr", "ViT-tiny", 224, 64, 1),
        ]
    checked = [
        step(measure_step, "moco", "ResNet-18", 32, 256, 7, with_family=True),
        step(measure_step, "moco", "ResNet-18", 64, 256, 5),
        step(measure_step, "simclr", "ResNet-18", 32, 256, 7),
    ]
    if data_dir is not None:
        checked += [step(measure_recipe, data_dir, queue, 15) for queue in (1024, 4096, QUEUE)]
    return checked


def limits(results: list[Result]) -> list[tuple[str, float, float, bool]]:
    """Name, ratio, limit, and whether the limit is a lower one."""
    found = {(r["method"], r["network"], r["size"]): r for r in results if "network" in r}

    rows = []
    for method, size, base, limit in [
        ("moco", 32, "plain", 1.42),
        ("moco", 64, "plain", 1.42),
        ("moco", 32, "lightly", 0.72),
        ("moco", 64, "lightly", 0.65),
        ("moco", 32, "naive", 0.45),
        ("moco", 64, "naive", 0.45),
        ("simclr", 32, "plain", 1.55),
    ]:
        if (method, "ResNet-18", size) in found:
            times = found[method, "ResNet-18", size]["milliseconds"]
            name = f"{method}, {size} px: mixco / {base}"
            rows.append((name, times["mixco"] / times[base], limit, False))
    times = found.get(("moco", "ResNet-18", 32), {}).get("milliseconds", {})
    if "imix" in times:
        for name, limit in [("imix", 1.05), ("unmix halves", 1.42), ("unmix reversed", 1.80)]:
            rows.append(
                (f"moco, 32 px: {name} / plain", times[name] / times["plain"], limit, False)
            )
    for r in results:
        if r["method"] == "recipe":
            value = r["recipe_images_per_second"] / r["network_images_per_second"]
            rows.append((f"recipe / network alone, queue {r['queue']:,}", value, 0.85, True))
    return rows


def print_results(results: list[Result], console: Console) -> None:
    """Tables of the steps and of the recipe."""
    arms = ["lightly", "naive", "plain", "mixco", "imix", "unmix halves", "unmix reversed"]
    arms += ["compiled", "network"]
    table = Table(title="One step, ms (peak memory beyond the weights, MB)")
    for name in ["method", "network", "pixels", "batch", *arms, "mixco/lightly", "mixco/plain"]:
        table.add_column(name, justify="right")
    for r in results:
        if r["method"] == "recipe":
            continue
        times, memory = r["milliseconds"], r["peak_megabytes"]
        cells = [
            (f"{times[arm]:,.0f}" + (f" ({memory[arm]:,.0f})" if arm in memory else ""))
            if arm in times
            else "-"
            for arm in arms
        ]
        ratios = [f"{times['mixco'] / times[base]:.2f}" for base in ("lightly", "plain")]
        table.add_row(r["method"], r["network"], str(r["size"]), str(r["batch"]), *cells, *ratios)
    console.print(table)
    for r in results:
        if r["method"] == "recipe":
            console.print(
                f"MoCo recipe, ResNet-18 at 32 pixels, queue {r['queue']:,}, augmented by "
                f"{r['augment']}, {r['workers']} workers: "
                f"{r['recipe_images_per_second']:,.0f} images/s; its networks alone "
                f"{r['network_images_per_second']:,.0f}"
            )


def plot(results: list[Result], path: Path) -> None:
    """Bars of the steps' times relative to Lightly's plain step."""
    from matplotlib.figure import Figure

    rows = [r for r in results if "network" in r]
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    arms = {
        "lightly": "Lightly's example, no mixtures",
        "naive": "Lightly's example, authors' MixCo formula",
        "plain": "this package, no mixtures",
        "mixco": "this package, MixCo",
    }
    for offset, (arm, label) in enumerate(arms.items()):
        points = [
            (index + 0.2 * (offset - 1.5), r["milliseconds"][arm] / r["milliseconds"]["lightly"])
            for index, r in enumerate(rows)
            if arm in r["milliseconds"]
        ]
        axes.bar(*zip(*points, strict=True), width=0.19, label=label)
    names = [f"{r['method']}\n{r['network']}\n{r['size']} px" for r in rows]
    axes.set_xticks(range(len(rows)), names, fontsize=8)
    axes.set_ylabel("time of a step / Lightly's")
    axes.axhline(1, color="black", linewidth=0.7)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def setting_of(result: Result) -> tuple[Any, ...]:
    """What was measured, without the figures."""
    names = ("method", "network", "size", "queue", "keep_memory")
    return tuple(result.get(name) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="exit code 1 if a limit is missed")
    parser.add_argument("--more", action="store_true", help="measure what has no limit instead")
    parser.add_argument("--only", help="of these only one method, network or size, such as 224")
    parser.add_argument("--keep_memory", action="store_true", help="as the recipes' allocator")
    parser.add_argument("--data_dir", type=Path, help="imagefolder of CIFAR-10")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    parser.add_argument("--plot", type=Path, help="picture of the steps' times")
    args = parser.parse_args()

    if args.keep_memory:
        from mixco_lightly.machine import keep_freed_memory

        keep_freed_memory()
    warnings.filterwarnings("ignore", message=".*self.log.*")
    torch.manual_seed(0)
    console = Console(width=160)
    results: list[Result] = []
    kept: list[Result] = []
    if args.output and args.output.exists():
        kept = json.loads(args.output.read_text())["results"]
    runs = settings(args.more, args.data_dir)
    if args.only:
        runs = [run for run in runs if args.only in map(str, run.args)]
    for run in track(runs, "measuring", console=Console(stderr=True)):
        results.append({**run(), "keep_memory": args.keep_memory})
        kept = [result for result in kept if setting_of(result) != setting_of(results[-1])]
        if args.output:
            facts = {"torch": torch.__version__, "threads": torch.get_num_threads()}
            args.output.write_text(json.dumps({**facts, "results": kept + results}, indent=1))
    print_results(results, console)
    if args.plot:
        plot(kept + results, args.plot)

    missed = 0
    for name, ratio, limit, is_lower in [] if args.more else limits(results):
        is_missed = ratio < limit if is_lower else ratio > limit
        missed += is_missed
        verdict = "missed" if is_missed else "ok"
        console.print(f"{verdict:>6}  {ratio:6.3f}  (limit {limit:g})  {name}")
    if args.check and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
