"""Accuracies of a probe, and how they follow from scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class ProbeResult(NamedTuple):
    """Accuracies of a probe on the test images, after its last epoch.

    Attributes:
        top1: Accuracy in percent. NaN for a protocol that measures no accuracy of the test images.
        top5: Percentage of the images whose class is among the first five predictions, or among
            the first ``num_classes`` where there are fewer classes.
        note: What was adapted to a small dataset, which setting was chosen from how many, and
            whether a fit did not converge. Empty if there is nothing to note.
        measures: Further measures in percent by their names, such as "ECE".
    """

    top1: float
    top5: float
    note: str = ""
    measures: Mapping[str, float] = {}


class EpochResults(NamedTuple):
    """Accuracies of a classifier that is tested after each epoch.

    Attributes:
        last: After the last epoch. Compare this one.
        best: After the epoch with the highest top-1, the earliest of several. The epoch is chosen
            on the test images, so this figure is biased upwards. The authors' evaluation reports
            it, next to the last epoch's top-5.
        best_epoch: That epoch, counted from 1.
    """

    last: ProbeResult
    best: ProbeResult
    best_epoch: int


def join_notes(*notes: str) -> str:
    """Joins the notes that are not empty."""
    return "; ".join(filter(None, notes))


def rank_scores(scores: Tensor, targets: Tensor, note: str = "") -> ProbeResult:
    """Computes accuracies from scores.

    Args:
        scores: Shape (N, classes); the highest is the prediction.
        targets: True classes, shape (N,).
        note: Note of the result.

    Returns:
        Accuracies in percent.
    """
    num_classes = scores.shape[1]
    ranked = scores.topk(min(5, num_classes), dim=1).indices
    return count_correct(ranked, targets.to(ranked.device), num_classes, note)


def count_correct(ranked: Tensor, targets: Tensor, num_classes: int, note: str) -> ProbeResult:
    """Computes accuracies from ranked predictions.

    Args:
        ranked: Classes by falling score, shape (N, at least min(5, num_classes)).
        targets: True classes, shape (N,).
        num_classes: Number of classes.
        note: Note of the result.

    Returns:
        Accuracies in percent.
    """
    if num_classes < 5:
        note = join_notes(note, f"top5 is top{num_classes}: {num_classes} classes")
    correct = ranked[:, : min(5, num_classes)] == targets.unsqueeze(1)  # N x 5
    top1 = 100 * correct[:, 0].double().mean().item()
    top5 = 100 * correct.any(dim=1).double().mean().item()
    return ProbeResult(top1, top5, note)
