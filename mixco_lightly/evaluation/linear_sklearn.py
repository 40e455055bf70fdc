"""The scikit-learn solver of the linear probe: logistic regression."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor


def fit_sklearn(
    num_classes: int,
    settings: list[dict[str, float]],
    train_x: Tensor,
    targets: Tensor,
    rows: Tensor | None,
    test_x: Tensor,
    *,
    max_iter: int,
) -> Iterator[tuple[Tensor, str]]:
    """Yields the probabilities of ``test_x``, shape (M, C), and a warning or "" per setting."""
    if rows is not None:
        train_x, targets = train_x[rows], targets[rows]
    classifier = LogisticRegression(max_iter=max_iter, warm_start=True)
    for setting in settings:
        classifier.set_params(**setting)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            classifier.fit(train_x.numpy(), targets.numpy())
        converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        # Older releases of scikit-learn return float64 for float32 input.
        probabilities = torch.from_numpy(classifier.predict_proba(test_x.numpy())).float()
        # predict_proba has no column for a class without a training image.
        scores = torch.full((len(test_x), num_classes), -1.0, dtype=probabilities.dtype)
        scores[:, torch.from_numpy(classifier.classes_)] = probabilities
        yield scores, "" if converged else f"not converged after {max_iter} iterations"
