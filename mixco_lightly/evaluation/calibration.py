"""How well a classifier's confidence agrees with its accuracy."""

from __future__ import annotations

from torch import Tensor

from mixco_lightly.evaluation.probe_result import ProbeResult

# Of equal width, as in the paper.
NUM_BINS = 15


def calibration_error(logits: Tensor, targets: Tensor) -> float:
    """Computes the expected calibration error of a classifier [0].

    The predictions are put into 15 bins by their confidence, the largest probability. The error is
    the mean over all predictions of ``|accuracy - confidence|`` of their bin, as torchmetrics'
    ``multiclass_calibration_error`` computes it.

    - [0]: On Calibration of Modern Neural Networks, 2017, https://arxiv.org/abs/1706.04599

    Args:
        logits: Shape (N, classes).
        targets: True classes, shape (N,).

    Returns:
        The error in percent; NaN if a logit is not finite.

    Examples:
        >>> import torch
        >>> from mixco_lightly.evaluation.calibration import calibration_error
        >>> calibration_error(torch.zeros(4, 2), torch.tensor([0, 0, 0, 0]))
        50.0
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    if not logits.isfinite().all():
        return float("nan")
    # torchmetrics would take logits that all lie in [0, 1] for probabilities.
    probabilities = logits.float().softmax(dim=1)
    error = multiclass_calibration_error(
        probabilities, targets.to(logits.device), logits.shape[1], NUM_BINS, validate_args=False
    )
    return 100 * error.item()


def add_calibration(result: ProbeResult, logits: Tensor, targets: Tensor) -> ProbeResult:
    """Adds the expected calibration error of a classifier to its accuracies."""
    error = calibration_error(logits, targets)
    return result._replace(measures={**result.measures, "ECE": error})
