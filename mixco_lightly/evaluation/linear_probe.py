"""Linear classifiers on the features of a frozen backbone."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixco_lightly.evaluation.features import Features


class ProbeResult(NamedTuple):
    """Accuracies of a probe on the test images, after its last epoch.

    Attributes:
        top1: Accuracy in percent.
        top5: Share in percent of the images whose class is among the first five; of the first
            ``num_classes`` where there are fewer.
        note: What was adapted to a small dataset, else empty.
    """

    top1: float
    top5: float
    note: str = ""


def linear_probe(
    train: Features,
    test: Features,
    solver: str = "torch",
    *,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 0.1,
    C: float = 1.0,
    max_iter: int = 1000,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> ProbeResult:
    """Trains a linear classifier on features and tests it.

    Features are standardised with the training features' mean and standard deviation.

    The torch solver follows the authors' evaluation on cached features: SGD with momentum 0.9
    and no weight decay, 100 epochs in batches of 256, the learning rate divided by ten after 60%
    and 80% of the epochs, weights drawn from N(0, 0.01), bias 0. There are no augmentations, and
    the accuracy is that of the last epoch, where the authors report the best. Their learning
    rate of 3.0 is for features that are not standardised.

    The scikit-learn solver is ``LogisticRegression``, which converges to one optimum.

    Args:
        train: Features to fit.
        test: Features to classify.
        solver: "torch" or "sklearn".
        epochs: Passes over the training features (torch).
        batch_size: Features in a step (torch).
        learning_rate: Initial learning rate (torch).
        C: Inverse strength of the L2 penalty (sklearn).
        max_iter: Most iterations of L-BFGS (sklearn); if it does not converge, ``note`` says so.
        seed: Seed of the initial weights and of the order (torch).
        device: Where to run (torch). Default: where the features are.

    Returns:
        Accuracies in percent.

    Raises:
        ValueError: If there is no such solver, if a number is not positive, or if the features
            do not fit together or are not finite.

    Examples:
        >>> import torch
        >>> from mixco_lightly import Features, linear_probe
        >>> train = Features(torch.eye(4).repeat(8, 1), torch.arange(4).repeat(8))
        >>> linear_probe(train, train, solver="sklearn").top1
        100.0
    """
    if solver not in ("torch", "sklearn"):
        raise ValueError(f"solver must be 'torch' or 'sklearn', got {solver!r}.")
    if min(epochs, batch_size, max_iter) < 1 or not (learning_rate > 0 and C > 0):
        raise ValueError(
            "epochs, batch_size, max_iter, learning_rate and C must be positive, got "
            f"{epochs}, {batch_size}, {max_iter}, {learning_rate} and {C}."
        )
    num_classes = check_features(train, test)
    device = torch.device(device) if device is not None else train.features.device
    train, test = (Features(part.features.cpu(), part.targets.cpu()) for part in (train, test))
    mean = train.features.mean(dim=0)
    # A feature that is constant over the training images carries nothing: leave it at zero.
    std = train.features.std(dim=0, correction=0)
    std = std.where(std > 1e-6 * train.features.abs().amax(dim=0), torch.inf)
    train_x, test_x = ((part.features - mean) / std for part in (train, test))

    note = ""
    if solver == "torch":
        scores = _fit_sgd(
            train_x, train.targets, test_x, num_classes, epochs, batch_size, learning_rate, seed,
            device,
        )  # fmt: skip
    else:
        scores, note = _fit_sklearn(train_x, train.targets, test_x, num_classes, C, max_iter)
    ranked = scores.topk(min(5, num_classes), dim=1).indices
    return count_correct(ranked, test.targets, num_classes, note)


def _fit_sgd(
    train_x: Tensor,
    targets: Tensor,
    test_x: Tensor,
    num_classes: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Without nn.Linear's own initialisation, which would move the global random generator.
    classifier = nn.utils.skip_init(nn.Linear, train_x.shape[1], num_classes)
    nn.init.normal_(classifier.weight, std=0.01, generator=generator)
    nn.init.zeros_(classifier.bias)
    classifier.to(device)
    train_x, targets = train_x.to(device), targets.to(device)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=learning_rate, momentum=0.9)
    milestones = [round(epochs * part) for part in (0.6, 0.8)]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    for _ in range(epochs):
        for rows in torch.randperm(len(train_x), generator=generator).to(device).split(batch_size):
            loss = nn.functional.cross_entropy(classifier(train_x[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    with torch.no_grad():
        scores: Tensor = classifier(test_x.to(device)).cpu()
    return scores


def _fit_sklearn(
    train_x: Tensor, targets: Tensor, test_x: Tensor, num_classes: int, C: float, max_iter: int
) -> tuple[Tensor, str]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(C=C, max_iter=max_iter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        classifier.fit(train_x.numpy(), targets.numpy())
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    probabilities = torch.from_numpy(classifier.predict_proba(test_x.numpy()))
    # Classes without a training image have no column of their own.
    scores = torch.full((len(test_x), num_classes), -1.0, dtype=probabilities.dtype)
    scores[:, torch.from_numpy(classifier.classes_)] = probabilities
    return scores, "" if converged else f"not converged after {max_iter} iterations"


def check_features(train: Features, test: Features) -> int:
    """Checks that two sets of features fit together.

    Args:
        train: Training features.
        test: Test features.

    Returns:
        The number of classes, one more than the largest target.

    Raises:
        ValueError: If a set is empty, its numbers of features and targets differ, the widths
            differ, a target is negative, a feature is not finite, or there is only one class.
    """
    for name, part in [("training", train), ("test", test)]:
        if part.features.dim() != 2 or len(part.features) != len(part.targets) or not len(part[0]):
            raise ValueError(
                f"The {name} features must have shape (N, D) with N targets and N > 0, got "
                f"{tuple(part.features.shape)} and {tuple(part.targets.shape)}."
            )
        if part.targets.min() < 0:
            raise ValueError(
                f"The {name} targets must be class indices from 0, got {part.targets.min()}."
            )
        if not part.features.isfinite().all():
            raise ValueError(f"The {name} features have values that are not finite.")
    if train.features.shape[1] != test.features.shape[1]:
        raise ValueError(
            f"The training features have {train.features.shape[1]} dimensions, the test "
            f"features {test.features.shape[1]}."
        )
    if train.targets.unique().numel() < 2:
        raise ValueError("The training features are all of one class.")
    return int(torch.cat([train.targets, test.targets]).max()) + 1


def count_correct(ranked: Tensor, targets: Tensor, num_classes: int, note: str) -> ProbeResult:
    """Turns ranked predictions into accuracies.

    Args:
        ranked: Classes by falling score, shape (N, at least min(5, num_classes)).
        targets: True classes, shape (N,).
        num_classes: Number of classes.
        note: Carried over to the result.

    Returns:
        Accuracies in percent.
    """
    if num_classes < 5:
        note = "; ".join(filter(None, [note, f"top5 is top{num_classes}: {num_classes} classes"]))
    correct = ranked[:, : min(5, num_classes)] == targets.unsqueeze(1)  # N x 5
    top1 = 100 * correct[:, 0].double().mean().item()
    top5 = 100 * correct.any(dim=1).double().mean().item()
    return ProbeResult(top1, top5, note)
