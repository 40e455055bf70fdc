"""The protocols: how a part of a network is measured by an accuracy.

The fields of a class are its settings, which go into each record. CONTRIBUTING.md adds a protocol.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from mixco_lightly.evaluation.probe_result import (
    EpochResults,
    ProbeResult,
    join_notes,
    rank_scores,
)

# The commands' options need the names below: --help must not wait for torch.
if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.utils.data import Dataset

    from mixco_lightly.evaluation.features import Features
    from mixco_lightly.evaluation.parts import Part

# The names for options, whose types cannot be computed.
ProtocolName = Literal["torch", "sklearn", "knn", "paper", "finetune"]

# Backbones need different learning rates, so the torch probe chooses one of these on a tenth of the
# training features.
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# The scikit-learn probe chooses one of these in the same way. The last is scikit-learn's default;
# few labels and many features need a stronger penalty. With a larger C the fit takes longer and
# overfits.
C_VALUES = (0.0001, 0.001, 0.01, 0.1, 1.0)


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
    """

    name: ClassVar[str]
    label: ClassVar[str]
    figure: ClassVar[str]
    needs_images: ClassVar[bool] = False
    has_ensemble: ClassVar[bool] = False

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


class LinearProbe(Protocol):
    """A linear classifier on features; a setting is chosen on a tenth of the training features."""

    has_ensemble = True

    @property
    @abstractmethod
    def choices(self) -> dict[str, Sequence[float]]:
        """Options of :func:`mixco_lightly.linear_probe`, with the values to choose from."""

    def measure(self, part: Part, setup: Setup) -> Outcome:
        """Trains and tests the classifier."""
        from mixco_lightly.evaluation.linear import linear_scores

        reason = _why_no_choice(part.train)
        scores, note = linear_scores(
            part.train,
            part.test,
            self.name,
            seed=setup.seed,
            device=setup.device,
            **({} if reason else self.choices),  # type: ignore[arg-type]
        )
        result = rank_scores(scores, part.test.targets, note)
        return Outcome(result._replace(note=join_notes(reason, result.note)), scores=scores)

    def measure_ensemble(self, parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Outcome:
        """Averages the classifiers' scores."""
        from mixco_lightly.evaluation.exits import average_scores

        scores = [outcome.scores for outcome in outcomes if outcome.scores is not None]
        result = average_scores(scores, parts[0].test.targets)
        reason = _why_no_choice(parts[0].train)
        return Outcome(result._replace(note=join_notes(reason, result.note)))


def _why_no_choice(train: Features) -> str:
    if train.targets.bincount().max() > 1:
        return ""
    return "one image a class, none to choose a setting on: linear_probe's default is taken"


@dataclass(frozen=True)
class TorchProbe(LinearProbe):
    """The linear probe trained by SGD.

    Args:
        learning_rates: Learning rates to choose from.
    """

    name = "torch"
    label = "linear, torch"
    figure = "linear"
    learning_rates: tuple[float, ...] = LEARNING_RATES

    @property
    def choices(self) -> dict[str, Sequence[float]]:
        """The learning rates to choose from."""
        return {"learning_rate": self.learning_rates}


@dataclass(frozen=True)
class SklearnProbe(LinearProbe):
    """The linear probe as scikit-learn's logistic regression.

    Args:
        C_values: Inverse penalties to choose from.
    """

    name = "sklearn"
    label = "linear, scikit-learn"
    figure = "sklearn"
    C_values: tuple[float, ...] = C_VALUES

    @property
    def choices(self) -> dict[str, Sequence[float]]:
        """The inverse penalties to choose from."""
        return {"C": self.C_values}


@dataclass(frozen=True)
class NearestNeighbours(Protocol):
    """A vote of the nearest training features.

    Args:
        k: Number of neighbours.
    """

    name = "knn"
    label = "kNN"
    figure = "knn"
    k: int = 200

    def measure(self, part: Part, setup: Setup) -> Outcome:
        """Classifies the test features by their neighbours."""
        from mixco_lightly.evaluation.knn import knn_probe

        return Outcome(knn_probe(part.train, part.test, k=self.k))


@dataclass(frozen=True)
class PaperEvaluation(Protocol):
    """The authors' linear evaluation: a classifier on the frozen backbone, augmented images.

    Args:
        epochs: Passes over the training images.
        learning_rate: Initial learning rate.
        batch_size: Images in a step.
    """

    name = "paper"
    label = "linear, paper"
    figure = "paper"
    needs_images = True
    epochs: int = 100
    learning_rate: float = 3.0
    batch_size: int = 256

    def measure(self, part: Part, setup: Setup) -> Outcome:
        """Trains the classifier and tests it on features after each epoch."""
        from mixco_lightly.evaluation.image_probes import paper_probe

        results = paper_probe(
            part.network,
            setup.images,
            part.test,
            **self.settings,
            **_image_options(setup),
        )
        return Outcome(results.last, results)


@dataclass(frozen=True)
class FineTuning(Protocol):
    """A copy of the backbone trained together with a classifier, on augmented images.

    Args:
        epochs: Passes over the training images. The default is Lightly's.
        learning_rate: Highest learning rate, for batches of 256.
        batch_size: Images in a step.
    """

    name = "finetune"
    label = "fine-tuned"
    figure = "finetune"
    needs_images = True
    epochs: int = 30
    learning_rate: float = 0.05
    batch_size: int = 256

    def measure(self, part: Part, setup: Setup) -> Outcome:
        """Fine-tunes a copy and tests it on images after each epoch."""
        from mixco_lightly.evaluation.image_probes import finetune_probe

        results = finetune_probe(
            part.network,
            setup.images,
            setup.test_images,
            **self.settings,
            **_image_options(setup),
        )
        return Outcome(results.last, results)


def _image_options(setup: Setup) -> dict[str, Any]:
    from mixco_lightly.evaluation.probe_progress import create_progress

    return {
        "num_classes": setup.num_classes,
        "augment": setup.augment,
        "num_workers": setup.num_workers,
        "seed": setup.seed,
        "device": setup.device,
        "precision": setup.precision,
        "callbacks": [create_progress(setup.title)],
    }


def create_protocols(
    *,
    knn_k: int = NearestNeighbours.k,
    paper_epochs: int = PaperEvaluation.epochs,
    paper_learning_rate: float = PaperEvaluation.learning_rate,
    finetune_epochs: int = FineTuning.epochs,
    finetune_learning_rate: float = FineTuning.learning_rate,
    step_size: int = PaperEvaluation.batch_size,
) -> dict[str, Protocol]:
    """Creates all protocols with their settings.

    Args:
        knn_k: Number of neighbours of knn.
        paper_epochs: Epochs of paper.
        paper_learning_rate: Initial learning rate of paper.
        finetune_epochs: Epochs of finetune.
        finetune_learning_rate: Highest learning rate of finetune, for batches of 256.
        step_size: Images in a step of paper and finetune.

    Returns:
        The protocols by name, in the order of tables.

    Examples:
        >>> from mixco_lightly.evaluation.protocols import create_protocols
        >>> create_protocols(knn_k=5)["knn"]
        NearestNeighbours(k=5)
    """
    protocols: list[Protocol] = [
        TorchProbe(),
        SklearnProbe(),
        NearestNeighbours(knn_k),
        PaperEvaluation(paper_epochs, paper_learning_rate, step_size),
        FineTuning(finetune_epochs, finetune_learning_rate, step_size),
    ]
    return {protocol.name: protocol for protocol in protocols}


PROTOCOLS = create_protocols()
"""The protocols by name, with their default settings."""
PROTOCOL_LABELS = {name: protocol.label for name, protocol in PROTOCOLS.items()}
# What evaluate.py and pretraining runs measure by default: features are extracted only once.
DEFAULT_PROTOCOLS: list[ProtocolName] = ["torch", "sklearn", "knn"]
