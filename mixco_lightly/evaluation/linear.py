"""Linear classifiers on the features of a frozen backbone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mixco_lightly.evaluation.features import Features, check_features
from mixco_lightly.evaluation.linear_choice import choose_setting, describe_setting, hold_out
from mixco_lightly.evaluation.linear_sgd import fit_sgd
from mixco_lightly.evaluation.probe_result import ProbeResult, join_notes, rank_scores


def linear_probe(
    train: Features,
    test: Features,
    solver: str = "torch",
    *,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float | Sequence[float] = 0.1,
    weight_decay: float | Sequence[float] = 0.0,
    C: float | Sequence[float] = 1.0,
    max_iter: int = 1000,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> ProbeResult:
    """Trains a linear classifier on features and tests it.

    Features are standardised with the training features' mean and standard deviation.

    The torch solver follows the authors' evaluation, but on cached features: SGD with momentum
    0.9 and no weight decay, 100 epochs in batches of 256, the learning rate divided by ten after
    60% and 80% of the epochs, weights drawn from N(0, 0.01), bias 0. Images are not augmented.
    The accuracy is the last epoch's; the authors report the best epoch's. Their learning rate of
    3.0 is for features that are not standardised.

    The scikit-learn solver is ``LogisticRegression``, which converges to one optimum.

    Given several values of ``learning_rate``, ``weight_decay`` or ``C``, the probe holds out a
    tenth of each class of the training features and trains all combinations on the rest (torch:
    at once, on the same batches; scikit-learn: by rising C, each from the previous optimum). It
    then trains the combination with the best top-1 on the held-out features again, on all
    training features. Ties go to the smallest learning rate, then the smallest weight decay, or
    the smallest C. The test features play no part in the choice, and the result equals that of
    the chosen values alone.

    Args:
        train: Features to fit, of shapes (N, D) and (N,).
        test: Features to classify, of shapes (M, D) and (M,).
        solver: "torch" or "sklearn".
        epochs: Passes over the training features (torch).
        batch_size: Features in a step (torch).
        learning_rate: Initial learning rate (torch), or several to choose from.
        weight_decay: L2 penalty of weights and bias, as in ``torch.optim.SGD`` (torch), or
            several to choose from. Default: none, as in the authors' code.
        C: Inverse strength of the L2 penalty (sklearn), or several to choose from.
        max_iter: Maximum number of L-BFGS iterations (sklearn). If it does not converge, ``note``
            says so.
        seed: Seed of the initial weights, of the order (torch) and of the held-out features.
        device: Where to run (torch). Default: where the features are.

    Returns:
        Accuracies in percent; ``note`` says which setting was chosen, and from how many.

    Raises:
        ValueError: If the solver is unknown, a number is not positive (weight decay: negative),
            there is no value to choose from or no feature to hold out, the features do not match
            or are not finite, or the classifier diverges.

    Examples:
        >>> import torch
        >>> from mixco_lightly import Features, linear_probe
        >>> train = Features(torch.eye(4).repeat(8, 1), torch.arange(4).repeat(8))
        >>> linear_probe(train, train, solver="sklearn").top1
        100.0
        >>> linear_probe(train, train, learning_rate=[0.3, 0.1], epochs=5).note.split(";")[0]
        'learning_rate=0.1, weight_decay=0.0 chosen from 2 on a tenth of the training features'
    """
    scores, note = linear_scores(
        train,
        test,
        solver,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        C=C,
        max_iter=max_iter,
        seed=seed,
        device=device,
    )
    return rank_scores(scores, test.targets, note)


def linear_scores(
    train: Features,
    test: Features,
    solver: str = "torch",
    *,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float | Sequence[float] = 0.1,
    weight_decay: float | Sequence[float] = 0.0,
    C: float | Sequence[float] = 1.0,
    max_iter: int = 1000,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, str]:
    """Computes the test scores of the classifier that :func:`linear_probe` trains.

    It takes the arguments and raises the errors of :func:`linear_probe`.

    Returns:
        Scores of shape (M, classes) on the CPU: logits (torch) or probabilities (sklearn). And
        the note of the result.
    """
    if solver not in ("torch", "sklearn"):
        raise ValueError(f"solver must be 'torch' or 'sklearn', got {solver!r}.")
    rates = _sorted_values("learning_rate", learning_rate)
    decays = _sorted_values("weight_decay", weight_decay)
    strengths = _sorted_values("C", C)
    # One min(...) over all of them would hide a NaN.
    if min(epochs, batch_size, max_iter) < 1 or not all(x > 0 for x in rates + strengths):
        raise ValueError(
            "epochs, batch_size, max_iter, learning_rate and C must be positive, got "
            f"{epochs}, {batch_size}, {max_iter}, {learning_rate} and {C}."
        )
    if not all(decay >= 0 for decay in decays):
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}.")
    num_classes = check_features(train, test)
    device = torch.device(device) if device is not None else train.features.device
    train, test = (
        Features(part.features.detach().cpu(), part.targets.cpu()) for part in (train, test)
    )
    train_x, test_x = _standardise(train.features, test.features)

    fit: Callable[..., Iterator[tuple[Tensor, str]]]
    if solver == "torch":
        settings = [
            {"learning_rate": rate, "weight_decay": decay}
            for rate, decay in itertools.product(rates, decays)
        ]
        fit = functools.partial(
            fit_sgd, num_classes, epochs=epochs, batch_size=batch_size, seed=seed, device=device
        )
    else:
        from mixco_lightly.evaluation.linear_sklearn import fit_sklearn

        settings = [{"C": strength} for strength in strengths]
        fit = functools.partial(fit_sklearn, num_classes, max_iter=max_iter)
    chosen, note = settings[0], ""
    if len(settings) > 1:
        kept, held = hold_out(train.targets, seed)
        trained = fit(settings, train_x, train.targets, kept, train_x[held])
        chosen, note = choose_setting(settings, trained, train.targets[held])
    ((scores, warning),) = fit([chosen], train_x, train.targets, None, test_x)
    if not scores.isfinite().all():
        raise ValueError(f"The classifier diverged with {describe_setting(chosen)}.")
    return scores, join_notes(note, warning)


def _sorted_values(name: str, value: float | Sequence[float]) -> list[float]:
    values = sorted({float(x) for x in value} if isinstance(value, Iterable) else {float(value)})
    if not values:
        raise ValueError(f"{name} must have at least one value, got {value}.")
    return values


def _standardise(train_x: Tensor, test_x: Tensor) -> list[Tensor]:
    mean = train_x.mean(dim=0)
    # Equals train_x.std(dim=0, correction=0) in a tenth of the time, because pieces fit the cache.
    squares = [piece.double().sub_(mean).square_().sum(dim=0) for piece in train_x.split(256)]
    std = (torch.stack(squares).sum(dim=0) / len(train_x)).sqrt().to(train_x.dtype)
    # A constant feature carries no information; it becomes zero.
    largest = torch.maximum(train_x.amax(dim=0), -train_x.amin(dim=0))
    std = std.where(std > 1e-6 * largest, torch.inf)
    return [(x - mean).div_(std) for x in (train_x, test_x)]
