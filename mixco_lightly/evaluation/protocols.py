"""The protocols: how a part of a network is measured by an accuracy.

To add a protocol, add a class, a line in ``create_protocols``, and a name in ``ProtocolName``. The
fields of the class are its settings; they go into each record.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mixco_lightly.evaluation.probe_result import ProbeResult, join_notes, rank_scores
from mixco_lightly.evaluation.protocol import Outcome, Protocol, Setup

# The commands' options need the names below: --help must not wait for torch.
if TYPE_CHECKING:
    from torch import Tensor

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
        result = self._rank(scores, part.test.targets, join_notes(reason, note))
        return Outcome(result, scores=scores)

    def measure_ensemble(self, parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Outcome:
        """Averages the classifiers' scores."""
        from mixco_lightly.evaluation.exits import average_scores

        scores = [outcome.scores for outcome in outcomes if outcome.scores is not None]
        reason = _why_no_choice(parts[0].train)
        return Outcome(self._rank(average_scores(scores), parts[0].test.targets, reason))

    def _rank(self, scores: Tensor, targets: Tensor, note: str) -> ProbeResult:
        """Computes the measures of scores."""
        return rank_scores(scores, targets, note)


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

    def _rank(self, scores: Tensor, targets: Tensor, note: str) -> ProbeResult:
        from mixco_lightly.evaluation.calibration import add_calibration

        return add_calibration(super()._rank(scores, targets, note), scores, targets)


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
