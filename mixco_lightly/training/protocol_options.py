"""The options of protocols on evaluate.py's command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mixco_lightly.evaluation.further_protocols import Corruptions, FewShot, OutlierDetection
from mixco_lightly.evaluation.protocol import Protocol
from mixco_lightly.evaluation.protocols import (
    DEFAULT_PROTOCOLS,
    FineTuning,
    NearestNeighbours,
    PaperEvaluation,
    ProtocolName,
    SecondDatasetName,
    create_protocols,
)
from mixco_lightly.training.option_types import PositiveFloat, PositiveInt


@dataclass(frozen=True)
class ProtocolOptions:
    """Protocols.

    Args:
        protocol: What to measure: one or more of torch, sklearn, knn, paper, finetune, few-shot,
            corruptions, shift, ood, mutual-information.
        knn_k: Number of neighbours of knn.
        paper_epochs: Epochs of paper.
        paper_learning_rate: Initial learning rate of paper.
        finetune_epochs: Epochs of finetune, by default Lightly's. SimCLR uses 60 for 1% of labels.
        finetune_learning_rate: Highest learning rate of finetune, for batches of 256.
        step_size: Images in a training step of paper and finetune.
        few_shots: Numbers of training images of each class of few-shot.
        few_shot_episodes: Draws of few-shot, two or more.
        corrupted_images: How many test images corruptions uses, chosen by the seed. Each is
            corrupted in 18 ways.
        shift_dataset: Dataset of shift, with the same classes as the dataset that is measured.
            Default: the one found in shift_data_dir.
        shift_data_dir: Folder of the dataset of shift, whose test images are used.
        ood_dataset: Dataset of ood, with other classes. Default: the one found in ood_data_dir.
        ood_data_dir: Folder of the dataset of ood, whose test images are used.
        ood_k: Which nearest training image ood measures the distance to.
        information_steps: Training steps of each critic of mutual-information.
    """

    protocol: list[Literal[ProtocolName, SecondDatasetName, "mutual-information"]] = field(
        default_factory=lambda: [*DEFAULT_PROTOCOLS]
    )
    knn_k: PositiveInt = NearestNeighbours.k
    paper_epochs: PositiveInt = PaperEvaluation.epochs
    paper_learning_rate: PositiveFloat = PaperEvaluation.learning_rate
    finetune_epochs: PositiveInt = FineTuning.epochs
    finetune_learning_rate: PositiveFloat = FineTuning.learning_rate
    step_size: PositiveInt = PaperEvaluation.batch_size
    few_shots: list[PositiveInt] = field(default_factory=lambda: list(FewShot.shots))
    few_shot_episodes: PositiveInt = FewShot.episodes
    corrupted_images: PositiveInt = Corruptions.max_images
    shift_dataset: str | None = None
    shift_data_dir: str | None = None
    ood_dataset: str | None = None
    ood_data_dir: str | None = None
    ood_k: PositiveInt = OutlierDetection.k
    information_steps: PositiveInt = 1000

    @property
    def second_datasets(self) -> dict[str, tuple[str | None, str | None]]:
        """Name and folder of the second dataset of each chosen protocol that needs one."""
        places = {
            "shift": (self.shift_dataset, self.shift_data_dir),
            "ood": (self.ood_dataset, self.ood_data_dir),
        }
        return {name: place for name, place in places.items() if name in self.protocol}

    def choose_protocols(self, second_datasets: Mapping[str, str]) -> list[Protocol]:
        """Creates the chosen protocols of features and images, in the order of the option.

        Args:
            second_datasets: Names of the second datasets, by protocol.
        """
        known = create_protocols(
            knn_k=self.knn_k,
            paper_epochs=self.paper_epochs,
            paper_learning_rate=self.paper_learning_rate,
            finetune_epochs=self.finetune_epochs,
            finetune_learning_rate=self.finetune_learning_rate,
            step_size=self.step_size,
            few_shots=self.few_shots,
            few_shot_episodes=self.few_shot_episodes,
            corrupted_images=self.corrupted_images,
            shift_dataset=second_datasets.get("shift", ""),
            ood_dataset=second_datasets.get("ood", ""),
            ood_k=self.ood_k,
        )
        return [known[name] for name in dict.fromkeys(self.protocol) if name in known]
