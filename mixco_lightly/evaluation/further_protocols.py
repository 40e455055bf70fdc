"""Protocols beyond one accuracy: few shots, corruptions, a shifted dataset, outliers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixco_lightly.evaluation.linear_protocols import TorchProbe
from mixco_lightly.evaluation.probe_result import ProbeResult
from mixco_lightly.evaluation.protocol import Outcome, Protocol, Setup

# The commands' options need the protocols' names: --help must not wait for torch.
if TYPE_CHECKING:
    from torch import Tensor

    from mixco_lightly.evaluation.parts import Part


@dataclass(frozen=True)
class FewShot(Protocol):
    """The nearest mean of a few training features of each class, drawn anew in each episode.

    Args:
        shots: Numbers of training features of each class.
        episodes: Number of draws.
    """

    name = "few-shot"
    label = "class means"
    figure = "class_means"
    shots: tuple[int, ...] = (1, 5, 10)
    episodes: int = 100

    def __post_init__(self) -> None:
        if not self.shots or self.episodes < 2:
            raise ValueError(
                "few-shot needs one or more --few_shots, and --few_shot_episodes of 2 or more for "
                f"an interval; got {list(self.shots)} and {self.episodes}."
            )

    def measure(self, part: Part, setup: Setup) -> Outcome:
        """Computes the mean accuracy over the episodes and its interval for each number."""
        from mixco_lightly.evaluation.few_shot import few_shot_accuracies, summarise_episodes

        measures: dict[str, float] = {}
        for shots in self.shots:
            accuracies = few_shot_accuracies(
                part.train, part.test, shots, self.episodes, seed=setup.seed
            )
            mean, half = summarise_episodes(accuracies)
            measures |= {f"{shots}-shot": mean, f"{shots}-shot interval": half}
        note = f"intervals: half of the 95% interval of the mean over {self.episodes} episodes"
        return Outcome(ProbeResult(math.nan, math.nan, note, measures))


class TransferredProbe(TorchProbe):
    """The torch probe, tested on a further set of images instead of the test images."""

    def measure(self, part: Part, setup: Setup) -> Outcome:
        """Trains the classifier that torch trains, and tests it on the further images."""
        return super().measure(self._replace_test(part), setup)

    def measure_ensemble(self, parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Outcome:
        """Averages the classifiers' scores of the further images."""
        return super().measure_ensemble([self._replace_test(part) for part in parts], outcomes)

    def _replace_test(self, part: Part) -> Part:
        return part._replace(test=part.further[self.image_set])


@dataclass(frozen=True)
class Corruptions(TransferredProbe):
    """The torch probe on corrupted test images; the mean over kinds and strengths.

    Args:
        max_images: Number of test images that are corrupted, chosen by the seed.
    """

    name = "corruptions"
    label = "linear, corrupted images"
    figure = "corrupted"
    image_set = "corrupted"
    max_images: int = 2000

    def _rank(self, scores: Tensor, targets: Tensor, note: str) -> ProbeResult:
        from mixco_lightly.data.corruptions import CORRUPTIONS
        from mixco_lightly.evaluation.probe_result import rank_scores

        result = super()._rank(scores, targets, note)
        # The images of a kind stand together, and each kind has the same number.
        kinds = zip(
            CORRUPTIONS,
            scores.chunk(len(CORRUPTIONS)),
            targets.chunk(len(CORRUPTIONS)),
            strict=True,
        )
        accuracies = {kind: rank_scores(part, truth).top1 for kind, part, truth in kinds}
        return result._replace(measures={**result.measures, **accuracies})


@dataclass(frozen=True)
class Shift(TransferredProbe):
    """The torch probe on the test images of another dataset with the same classes.

    Args:
        dataset: Name of that dataset.
    """

    name = "shift"
    label = "linear, shifted dataset"
    figure = "shifted"
    image_set = "shifted"
    dataset: str = ""


@dataclass(frozen=True)
class OutlierDetection(Protocol):
    """Detects the images of another dataset by the distance of features to the training features.

    Args:
        dataset: Name of that dataset.
        k: Which neighbour the distance is to. The default is the paper's for CIFAR-10.
    """

    name = "ood"
    label = "outlier detection"
    figure = "ood"
    image_set = "outliers"
    dataset: str = ""
    k: int = 50

    def measure(self, part: Part, setup: Setup) -> Outcome:
        """Computes AUROC and FPR95."""
        from mixco_lightly.evaluation.outliers import detect_outliers, nearest_distances

        train = part.train.features
        k = min(self.k, len(train))
        test, outliers = (
            nearest_distances(train, features.features, k)
            for features in (part.test, part.further[self.image_set])
        )
        auroc, fpr95 = detect_outliers(test, outliers)
        note = "" if k == self.k else f"k is {k}, the number of training images"
        return Outcome(ProbeResult(math.nan, math.nan, note, {"AUROC": auroc, "FPR95": fpr95}))
