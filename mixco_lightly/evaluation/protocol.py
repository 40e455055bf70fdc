"""What a protocol is: how a part of a network is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mixco_lightly.evaluation.probe_result import EpochResults, ProbeResult

# The commands' options need the protocols' names: --help must not wait for torch.
if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.utils.data import Dataset

    from mixco_lightly.evaluation.parts import Part


class Outcome(NamedTuple):
    """What a protocol measured.

    Attributes:
        last: Accuracies after the last epoch.
        epochs: The last and the best epoch, for protocols that test after each epoch.
        scores: Scores of the test images, shape (M, classes), for protocols with an ensemble.
    """

    last: ProbeResult
    epochs: EpochResults | None = None
    scores: Tensor | None = None


@dataclass(frozen=True)
class Setup:
    """What a protocol is given beside a part.

    Attributes:
        images: Training images whose labels are used, augmented already or as ``augment`` takes
            them. Prepared only if a protocol trains on images.
        test_images: Test images and targets.
        augment: Augments the training images of a batch, on the device.
        num_classes: Number of classes.
        num_workers: Processes that load training images.
        seed: Seed of the protocols.
        device: Where to run.
        precision: Lightning's precision.
        title: Title of a progress bar.
    """

    images: Dataset[Any]
    test_images: Dataset[Any]
    augment: Callable[[Tensor], Tensor] | None
    num_classes: int
    num_workers: int
    seed: int
    device: torch.device
    precision: str
    title: str


class Protocol(ABC):
    """How a part of a network is measured. A frozen dataclass whose fields are the settings.

    Attributes:
        name: Name on the command line and in records.
        label: Name in tables.
        figure: Name in summary.json, see :func:`mixco_lightly.evaluation.figures.name_figure`.
        needs_images: Whether it trains on images; otherwise it needs features only.
        has_ensemble: Whether it can measure the ensemble of several parts.
        image_set: Name of the further set of images whose features it needs, if it needs one.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    figure: ClassVar[str]
    needs_images: ClassVar[bool] = False
    has_ensemble: ClassVar[bool] = False
    image_set: ClassVar[str] = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as JSON stores them."""
        fields = asdict(self)  # type: ignore[call-overload]
        return {name: list(x) if isinstance(x, tuple) else x for name, x in fields.items()}

    @abstractmethod
    def measure(self, part: Part, setup: Setup) -> Outcome:
        """Measures a part of a network."""

    def measure_ensemble(self, parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Outcome:
        """Measures the ensemble of parts that have been measured."""
        raise ValueError(f"Protocol {self.name} has no ensemble.")
