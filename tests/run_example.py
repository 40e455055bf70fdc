"""Runs an example on a few fake images and notes what goes through its network and its loss.

As a program it is one of several processes: python tests/run_example.py FOLDER EXAMPLE ...
"""

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torchvision.datasets import FakeData

from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.data.collate import MixCollate
from mixco_lightly.loss.queue_loss import QueueLoss

EXAMPLES = Path(__file__).parent.parent / "examples"
EPOCHS, STEPS, BATCH = 2, 2, 6  # epochs, steps of each, images of a step in each process
QUIET = "logger=False, enable_checkpointing=False, enable_progress_bar=False, "
QUIET += "enable_model_summary=False, "
# What is changed in an example. Each change fits exactly once.
SMALLER = {
    '"resnet18"': '"test_resnet"',
    "batch_size=256": f"batch_size={BATCH}",
    "num_workers=8": "num_workers=0",
    r"(range\(|epochs ?= ?)10\b": rf"\g<1>{EPOCHS}",
}
LIGHTNING = {r"pl\.Trainer\(": f"pl.Trainer({QUIET}"}
SEVERAL = {'devices="auto"': "devices=2", 'accelerator="gpu"': 'accelerator="cpu"'}


class Notes(NamedTuple):
    """What an example did.

    Attributes:
        batches: Batches as the loader gave them: views, targets, mixtures.
        images: For each projection's bytes, its image and whether the momentum encoder computed it.
        steps: The loss's arguments and its value, for each step.
        weights: Weights of the backbone at its first forward and at the end; then those of the
            momentum encoder's, or none.
        queue: State of the loss.
        collate: The collate function.
        synchronised: Number of BatchNorm layers that GPUs would synchronise.
    """

    batches: list[list[Any]]
    images: dict[bytes, tuple[Tensor, bool]]
    steps: list[tuple[tuple[Any, ...], Tensor]]
    weights: tuple[Tensor, Tensor, Tensor]
    queue: dict[str, Tensor]
    collate: MixCollate
    synchronised: int


def key_of(projection: Tensor) -> bytes:
    """A projection as a key of ``Notes.images``."""
    return projection.detach().numpy().tobytes()


def weights_of(module: nn.Module | None) -> Tensor:
    """A copy of all weights, shape (n,)."""
    parameters = [] if module is None else list(module.parameters())
    return torch.cat([torch.empty(0), *(p.detach().flatten() for p in parameters)])


def make_smaller(code: str) -> str:
    """Changes how much an example does, and where."""
    changes = SMALLER | (LIGHTNING if "pl.Trainer" in code else {})
    changes |= SEVERAL if 'strategy="ddp"' in code else {}
    for old, new in changes.items():
        code, count = re.subn(old, new, code)
        assert count == 1, f"{old} is there {count} times"
    return code


def run_example(code: str, processes: int = 1) -> Notes:
    """Runs the code of an example, made smaller."""
    batches: list[list[Any]] = []
    images: dict[bytes, tuple[Tensor, bool]] = {}
    steps: list[tuple[tuple[Any, ...], Tensor]] = []
    first: list[Tensor] = []
    seen: list[tuple[Tensor, bool]] = []  # by the latest forward of a backbone
    synchronised: list[nn.Module] = []
    collate = MixCollate.__call__

    def fake_cifar10(root: str, download: bool, transform: Any) -> FakeData:
        assert download
        # The odd image is left out by drop_last. The targets are random, so they name the images.
        count = processes * STEPS * BATCH + 1
        return FakeData(count, (3, 32, 32), num_classes=10**9, transform=transform)

    def noted_collate(self: MixCollate, samples: list[Any]) -> list[Any]:
        batches.append(collate(self, samples))
        return batches[-1]

    def synchronise(layer: nn.Module) -> nn.Module:
        synchronised.append(layer)
        return layer  # torch's SyncBatchNorm runs on GPUs only

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, Backbone):
            is_momentum = not any(p.requires_grad for p in module.parameters())
            seen[:] = [(image, is_momentum) for image in arguments[0]]
            if not first and not is_momentum:
                first.append(weights_of(module))
        elif isinstance(module, ProjectionHead):
            images.update(zip(map(key_of, output), seen, strict=True))
        elif isinstance(module, QueueLoss):
            detached = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
            steps.append((tuple(detached), output.detach()))

    names: dict[str, Any] = {"__name__": "__main__"}
    hook = register_module_forward_hook(note)
    try:
        with (
            patch("torchvision.datasets.CIFAR10", fake_cifar10),
            patch.object(MixCollate, "__call__", noted_collate),
            patch("mixco_lightly.models.sync_batchnorm.convert_sync_batchnorm", synchronise),
        ):
            exec(compile(make_smaller(code), "example", "exec"), names)  # noqa: S102
    finally:
        hook.remove()
    model = names["model"]
    momentum = getattr(model, "backbone_momentum", None)
    return Notes(
        batches,
        images,
        steps,
        (*first, weights_of(model.backbone), weights_of(momentum)),
        names.get("criterion", getattr(model, "criterion", None)).state_dict(),
        names["dataloader"].collate_fn,
        len(synchronised),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *examples = sys.argv[1:]
    for example in examples:
        notes = run_example((EXAMPLES / example).read_text(), processes=2)
        rank = torch.distributed.get_rank()
        # As a dict: a pickle would name the class as __main__'s.
        torch.save(notes._asdict(), Path(folder) / f"{Path(example).stem}-{rank}.pt")
