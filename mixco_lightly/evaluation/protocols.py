"""The protocols: how a part of a network is measured.

The fields of a class are its settings, which go into each record. CONTRIBUTING.md adds a protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mixco_lightly.evaluation.further_protocols import (
    Corruptions,
    FewShot,
    OutlierDetection,
    Shift,
)
from mixco_lightly.evaluation.linear_protocols import SklearnProbe, TorchProbe
from mixco_lightly.evaluation.protocol import Outcome, Protocol, Setup

# The commands' options need the names below: --help must not wait for torch.
if TYPE_CHECKING:
    from mixco_lightly.evaluation.parts import Part

# The names for options, whose types cannot be computed.
ProtocolName = Literal["torch", "sklearn", "knn", "paper", "finetune", "few-shot", "corruptions"]
# These need a second dataset, which a pretraining run does not have.
SecondDatasetName = Literal["shift", "ood"]


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
    few_shots: Sequence[int] = FewShot.shots,
    few_shot_episodes: int = FewShot.episodes,
    corrupted_images: int = Corruptions.max_images,
    shift_dataset: str = "",
    ood_dataset: str = "",
    ood_k: int = OutlierDetection.k,
) -> dict[str, Protocol]:
    """Creates all protocols with their settings.

    Args:
        knn_k: Number of neighbours of knn.
        paper_epochs: Epochs of paper.
        paper_learning_rate: Initial learning rate of paper.
        finetune_epochs: Epochs of finetune.
        finetune_learning_rate: Highest learning rate of finetune, for batches of 256.
        step_size: Images in a step of paper and finetune.
        few_shots: Numbers of training images of each class of few-shot.
        few_shot_episodes: Draws of few-shot.
        corrupted_images: Test images of corruptions.
        shift_dataset: Name of the dataset of shift, for records.
        ood_dataset: Name of the dataset of ood, for records.
        ood_k: Which neighbour the distance of ood is to.

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
        FewShot(tuple(few_shots), few_shot_episodes),
        Corruptions(max_images=corrupted_images),
        Shift(dataset=shift_dataset),
        OutlierDetection(ood_dataset, ood_k),
    ]
    return {protocol.name: protocol for protocol in protocols}


PROTOCOLS = create_protocols()
"""The protocols by name, with their default settings."""
PROTOCOL_LABELS = {name: protocol.label for name, protocol in PROTOCOLS.items()}
# What evaluate.py and pretraining runs measure by default: features are extracted only once.
DEFAULT_PROTOCOLS: list[ProtocolName] = ["torch", "sklearn", "knn"]
