"""Every timm backbone by name: which image sizes it takes, and whether it trains.

    python tests/benchmarks/backbones.py                 all names, an hour or more on one core
    python tests/benchmarks/backbones.py --names 'vit_*'
    python tests/benchmarks/backbones.py --summary       only the summary of what is there

Each name is fitted to images of 32, 64 and 224 pixels on the meta device, by a forward pass at each
size. The smallest model of each module of timm is built for real: one training step with mixtures
of MoCo and of SimCLR at 32 and 64 pixels, in batches of 8, with a finite loss and with gradients in
the first and the last layer, then export, and features after loading that are equal bit by bit.

Every name is one row of --output, written as soon as it is there: a stopped run goes on where it
was. With --check the exit code is 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import multiprocessing
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from mixco_lightly import MixCoLoss, create_backbone, export_backbone, load_backbone, mix_pairs
from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.backbones.choice import Fitting
from mixco_lightly.models.moco import MoCo
from mixco_lightly.models.simclr import SimCLR

SIZES = [32, 64, 224]
STEP_SIZES = [32, 64]
METHODS = ["moco", "simclr"]
STEPS = [f"{method}_{size}" for size in STEP_SIZES for method in METHODS]
COLUMNS = ["module", "name", "timm", "parameters", "published_stride"]
COLUMNS += [f"{what}_{size}" for size in SIZES for what in ("stem", "stride", "feature_dim")]
COLUMNS += [f"error_{size}" for size in SIZES] + STEPS
BATCH_SIZE = 8
LARGEST_TRAINED = 1_000_000_000  # parameters; more do not fit into the memory of a usual machine
Row = dict[str, str]


def module_of(name: str) -> str:
    """The module of timm that a name comes from."""
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2]


def fit_all(name: str) -> Row:
    """What each image size gives for a name."""
    row: Row = {"module": module_of(name), "name": name, "timm": timm.__version__}
    try:
        fitting = Fitting(name)
    except ValueError as error:
        return row | {f"error_{size}": str(error) for size in SIZES}
    row |= {"parameters": str(fitting.parameters), "published_stride": str(fitting.stride or "")}
    for size in SIZES:
        try:
            fit = fitting.fit(size)
        except ValueError as error:
            row[f"error_{size}"] = str(error)
        else:
            row |= {f"stem_{size}": fit.stem, f"feature_dim_{size}": str(fit.feature_dim)}
            row[f"stride_{size}"] = str(fit.output_stride or "")
    return row


def train_all(name: str) -> Row:
    """What the training steps of a name give: "ok", or the reason in one line."""
    row: Row = {}
    for size in STEP_SIZES:
        for method in METHODS:
            try:
                check_step(name, method, size)
            except Exception as error:
                row[f"{method}_{size}"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            else:
                row[f"{method}_{size}"] = "ok"
    return row


def check_step(name: str, method: str, size: int, **timm_kwargs: Any) -> None:
    """One training step with mixtures, then export and load; raises an error if one fails."""
    torch.manual_seed(0)
    backbone = create_backbone(name, size, **timm_kwargs)
    if method == "moco":
        model: MoCo | SimCLR = MoCo(backbone, MixCoLoss(memory_bank_size=(64, 128)))
    else:
        model = SimCLR(backbone, MixCoLoss(0.5, 0.5))
    views = [torch.randn(BATCH_SIZE, 3, size, size) for _ in range(2)]
    mixtures = [mix_pairs(view) for view in (views[:1] if method == "moco" else views)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about logging without a trainer
        loss = model.training_step([views, None, mixtures], 0)
    if not loss.isfinite():
        raise ValueError(f"the loss is {loss.item()}")
    loss.backward()
    for place, layer in zip(
        ["first", "last"], first_and_last_layer(backbone, views[0]), strict=True
    ):
        gradients = [parameter.grad for parameter in layer.parameters(recurse=False)]
        if not any(grad is not None and grad.isfinite().all() and grad.any() for grad in gradients):
            raise ValueError(f"the {place} layer, a {type(layer).__name__}, has no gradient")
    torch.optim.SGD(backbone.parameters(), lr=0.01).step()
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        loaded = load_backbone(export_backbone(model, directory))
        if not torch.equal(loaded(views[0]), backbone.eval()(views[0])):
            raise ValueError("the loaded backbone has other features")


@torch.no_grad()
def first_and_last_layer(backbone: Backbone, images: Tensor) -> tuple[nn.Module, nn.Module]:
    """The layers with parameters of their own that a forward enters first and leaves last.

    Not in the order of registration, where some models keep layers that are idle.
    """
    entered: list[nn.Module] = []
    left: list[nn.Module] = []
    hooks = []
    for layer in backbone.model.modules():
        # The model's own parameters are tokens and positions, not a layer.
        if layer is not backbone.model and any(True for _ in layer.parameters(recurse=False)):
            if not any(layer.children()):
                hooks.append(layer.register_forward_pre_hook(lambda *args: entered.append(args[0])))
            hooks.append(layer.register_forward_hook(lambda *args: left.append(args[0])))
    backbone(images)
    for hook in hooks:
        hook.remove()
    return entered[0], left[-1]


def work(pipe: Connection) -> None:
    """The loop of the process that does the work."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    while True:
        function, name = pipe.recv()
        pipe.send(function(name))


class Worker:
    """A process for work that may hang or die; it is replaced then."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.process: multiprocessing.process.BaseProcess | None = None

    def run(self, function: Callable[[str], Row], name: str) -> Row | str:
        """What the function gives for a name, or why it gives nothing."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, end = context.Pipe()
            self.process = context.Process(target=work, args=(end,), daemon=True)
            self.process.start()
            end.close()
        self.pipe.send((function, name))
        try:
            if self.pipe.poll(self.seconds):
                return self.pipe.recv()
            reason = f"it took longer than {self.seconds:g} s"
        except EOFError:
            reason = "its process died"
        self.process.kill()
        self.process = None
        return reason


def read(path: Path) -> dict[str, Row]:
    """Rows by name; a later row of a name replaces an earlier one."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def append(path: Path, row: Row) -> None:
    """Writes a row at once."""
    is_new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def sweep(patterns: list[str], path: Path, seconds: float) -> None:
    """Adds the rows that are missing, then the training steps."""
    names = [
        name
        for name in timm.list_models()
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]
    seen: Counter[str] = Counter()
    place = {}
    for name in names:
        place[name] = seen[module_of(name)]
        seen[module_of(name)] += 1
    names.sort(key=place.__getitem__)  # a stopped run has seen something of every module
    rows = read(path)
    worker = Worker(seconds)
    for name in track([name for name in names if name not in rows], "Fitting"):
        row = worker.run(fit_all, name)
        if isinstance(row, str):
            row = {"module": module_of(name), "name": name, "timm": timm.__version__} | {
                f"error_{size}": row for size in SIZES
            }
        append(path, row)
    rows = read(path)
    missing = [row for row in smallest_of_modules(rows) if not row["moco_64"]]
    missing.sort(key=lambda row: int(row["parameters"]))
    for row in track(missing, "Training"):
        if int(row["parameters"]) > LARGEST_TRAINED:
            steps: Row | str = "not built: more than a billion parameters"
        else:
            steps = worker.run(train_all, row["name"])
        append(path, row | (dict.fromkeys(STEPS, steps) if isinstance(steps, str) else steps))
    rows = read(path)
    path.unlink()
    for name in sorted(rows, key=lambda name: (rows[name]["module"], name)):
        append(path, rows[name])


def smallest_of_modules(rows: dict[str, Row]) -> list[Row]:
    """The row of the smallest model of each module that can be built."""
    smallest: dict[str, Row] = {}
    for row in sorted(rows.values(), key=lambda row: int(row["parameters"] or 0)):
        if row["parameters"]:
            smallest.setdefault(row["module"], row)
    return [smallest[module] for module in sorted(smallest)]


def limits(rows: dict[str, Row]) -> list[tuple[str, float, float]]:
    """Name, value and limit of the figures to reach."""
    built = sum(any(row[f"feature_dim_{size}"] for size in SIZES) for row in rows.values())
    trained = [row for row in smallest_of_modules(rows) if trains(row, 64)]
    return [
        ("names that give (N, feature_dim), %", 100 * built / max(1, len(rows)), 99),
        ("modules that train at 64 pixels, export and load", len(trained), 95),
    ]


def trains(row: Row, size: int) -> bool:
    """Whether both methods' steps work at a size."""
    return all(row[f"{method}_{size}"] == "ok" for method in METHODS)


def summary(rows: dict[str, Row]) -> str:
    """The summary as Markdown: the figures, the counts of each module, and what fails."""
    modules = {row["module"] for row in rows.values()}
    versions = ", ".join(sorted({row["timm"] for row in rows.values()}))
    smallest = smallest_of_modules(rows)
    lines = [
        f"timm {versions}: {len(rows):,} names in {len(modules)} modules.",
        "",
        "| | 32 pixels | 64 pixels | 224 pixels | at least one |",
        "|---|---:|---:|---:|---:|",
    ]

    def count(test: Callable[[Row, int], bool]) -> str:
        counts = [sum(test(row, size) for row in rows.values()) for size in SIZES]
        anywhere = sum(any(test(row, size) for size in SIZES) for row in rows.values())
        return " | ".join(f"{value:,}" for value in [*counts, anywhere])

    lines += [
        f"| names that give (N, feature_dim) | {count(lambda r, s: bool(r[f'feature_dim_{s}']))} |",
        f"| of these with the small stem | {count(lambda r, s: r[f'stem_{s}'] == 'small')} |",
        "",
    ]
    for size in STEP_SIZES:
        good = sum(trains(row, size) for row in smallest)
        tried = sum(bool(row[f"moco_{size}"]) for row in smallest)
        lines.append(
            f"- {good} of {tried} modules tried, by their smallest model: a training step with "
            f"mixtures of MoCo and of SimCLR at {size} pixels, export, bit-equal features after "
            "loading."
        )
    missing = len(timm.list_models()) - len(rows)
    if missing > 0 or not all(row["moco_64"] for row in smallest):
        lines += [
            "",
            f"Not measured yet: {missing:,} names, and the training steps that the table leaves "
            "open.",
        ]
    lines += [
        "",
        "## Modules",
        "",
        "| module | names | at 32 | at 64 | at 224 | small stem at 32 | smallest model "
        "| parameters | trains at 32 | trains at 64 |",
        "|---|---:|---:|---:|---:|---:|---|---:|---|---|",
    ]
    for row in smallest:
        of_module = [other for other in rows.values() if other["module"] == row["module"]]
        counts = [sum(bool(other[f"feature_dim_{size}"]) for other in of_module) for size in SIZES]
        small = sum(other["stem_32"] == "small" for other in of_module)
        millions = f"{int(row['parameters']) / 1e6:,.1f} M"
        steps = [
            ("yes" if trains(row, size) else "no") if row[f"moco_{size}"] else ""
            for size in STEP_SIZES
        ]
        cells = [row["module"], len(of_module), *counts, small, row["name"], millions, *steps]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    nowhere = [
        row for row in rows.values() if not any(row[f"feature_dim_{size}"] for size in SIZES)
    ]
    lines += ["", "## Names that take none of the three sizes", ""]
    lines += [f"- {row['error_224']}" for row in nowhere] or ["None."]
    lines += ["", "## Training steps that fail", ""]
    failed = [
        f"- {row['name']}, {step.replace('_', ' at ')} pixels: {row[step]}"
        for row in smallest
        for step in STEPS
        if row[step] not in ("ok", "")
    ]
    lines += failed or ["None."]
    lines += ["", "## Sizes that a name does not take", ""]
    lines += [
        f"- {row[f'error_{size}']}"
        for row in rows.values()
        if row not in nowhere
        for size in SIZES
        if row[f"error_{size}"]
    ] or ["None."]
    return "\n".join(lines)


def main() -> None:
    """Sweeps and prints the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", nargs="+", default=["*"], help="wildcards")
    parser.add_argument("--output", type=Path, default=Path("docs/backbones.csv"))
    parser.add_argument("--seconds", type=float, default=300, help="time limit of a name")
    parser.add_argument("--summary", action="store_true", help="measure nothing")
    parser.add_argument("--check", action="store_true", help="fail where a limit is missed")
    options = parser.parse_args()
    if not options.summary:
        try:
            sweep(options.names, options.output, options.seconds)
        except KeyboardInterrupt:
            sys.exit(f"Stopped; the same command goes on. {options.output} has what is done.")
    rows = read(options.output)
    if not rows:
        sys.exit(f"error: {options.output} has no rows: run without --summary first.")
    print(summary(rows))
    console = Console(stderr=True)
    results = limits(rows)
    for name, value, limit in results:
        console.print(f"{'ok  ' if value >= limit else 'MISS'} {name}: {value:.1f} (limit {limit})")
    if options.check and any(value < limit for _, value, limit in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
