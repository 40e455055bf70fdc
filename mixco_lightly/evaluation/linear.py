"""Linear classifiers on the features of a frozen backbone."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
        note: What was adapted to a small dataset, which setting was chosen from how many, and
            whether a fit did not converge; else empty.
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
    learning_rate: float | Sequence[float] = 0.1,
    weight_decay: float | Sequence[float] = 0.0,
    C: float | Sequence[float] = 1.0,
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

    With several values of ``learning_rate``, ``weight_decay`` or ``C`` a tenth of each class of
    the training features is held out, all combinations are trained on the rest (torch: at once,
    on the same batches; scikit-learn: by rising C, each from the last one's optimum), and the
    one with the best top-1 on the held-out features is trained anew on all training features.
    Of equals the smallest learning rate, then the smallest weight decay, or the smallest C is
    chosen. The test features have no part in the choice, and the result is the one that the
    chosen values give alone.

    Args:
        train: Features to fit, of shapes (N, D) and (N,).
        test: Features to classify, of shapes (M, D) and (M,).
        solver: "torch" or "sklearn".
        epochs: Passes over the training features (torch).
        batch_size: Features in a step (torch).
        learning_rate: Initial learning rate (torch), or several to choose from.
        weight_decay: L2 penalty of weights and bias, as in ``torch.optim.SGD`` (torch), or
            several to choose from. Default: none, as the authors.
        C: Inverse strength of the L2 penalty (sklearn), or several to choose from.
        max_iter: Most iterations of L-BFGS (sklearn); if it does not converge, ``note`` says so.
        seed: Seed of the initial weights and of the order (torch), and of the features that are
            held out for a choice.
        device: Where to run (torch). Default: where the features are.

    Returns:
        Accuracies in percent; ``note`` says what was chosen, and from how many.

    Raises:
        ValueError: If there is no such solver, if a number is not positive (weight decay:
            negative), if there is no value to choose from or no feature to hold out, if the
            features do not fit together or are not finite, or if the classifier diverges.

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
    """What the classifier of :func:`linear_probe` says about the test features.

    The arguments and errors are those of :func:`linear_probe`.

    Returns:
        Scores of shape (M, classes) on the CPU, logits (torch) or probabilities (sklearn), and
        the note of the result.
    """
    if solver not in ("torch", "sklearn"):
        raise ValueError(f"solver must be 'torch' or 'sklearn', got {solver!r}.")
    rates = _sorted_values("learning_rate", learning_rate)
    decays = _sorted_values("weight_decay", weight_decay)
    strengths = _sorted_values("C", C)
    # Not min(...) of them all, which hides a NaN.
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
            _fit_sgd, num_classes, epochs=epochs, batch_size=batch_size, seed=seed, device=device
        )
    else:
        settings = [{"C": strength} for strength in strengths]
        fit = functools.partial(_fit_sklearn, num_classes, max_iter=max_iter)
    chosen, note = settings[0], ""
    if len(settings) > 1:
        kept, held = hold_out(train.targets, seed)
        trained = fit(settings, train_x, train.targets, kept, train_x[held])
        chosen, note = _choose(settings, trained, train.targets[held])
    ((scores, warning),) = fit([chosen], train_x, train.targets, None, test_x)
    if not scores.isfinite().all():
        raise ValueError(f"The classifier diverged with {_label(chosen)}.")
    return scores, "; ".join(filter(None, [note, warning]))


def _sorted_values(name: str, value: float | Sequence[float]) -> list[float]:
    values = sorted({float(x) for x in value} if isinstance(value, Iterable) else {float(value)})
    if not values:
        raise ValueError(f"{name} must have at least one value, got {value}.")
    return values


def _standardise(train_x: Tensor, test_x: Tensor) -> list[Tensor]:
    mean = train_x.mean(dim=0)
    # Equal to train_x.std(dim=0, correction=0), in a tenth of its time: pieces fit the cache.
    squares = [piece.double().sub_(mean).square_().sum(dim=0) for piece in train_x.split(256)]
    std = (torch.stack(squares).sum(dim=0) / len(train_x)).sqrt().to(train_x.dtype)
    # A feature that is constant over the training images carries nothing: leave it at zero.
    largest = torch.maximum(train_x.amax(dim=0), -train_x.amin(dim=0))
    std = std.where(std > 1e-6 * largest, torch.inf)
    return [(x - mean).div_(std) for x in (train_x, test_x)]


def hold_out(targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Splits a training set in order to choose a setting.

    Args:
        targets: Class indices of shape (N,).
        seed: Seed of the choice.

    Returns:
        Indices that are kept and, about a tenth of each class, indices that are held out, both
        rising. Each class keeps at least one.

    Raises:
        ValueError: If no class has two.
    """
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    order = order[targets[order].argsort(stable=True)]  # by class, at random within it
    # The first of each class stays, so that no class is missing from the classifier.
    candidates = order[1:][targets[order].diff() == 0]
    if not len(candidates):
        raise ValueError(
            "To choose from several values a class must have two training features, but each "
            "has one."
        )
    held = torch.zeros(len(targets), dtype=torch.bool)
    held[candidates[::10]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def _choose(
    settings: list[dict[str, float]], trained: Iterable[tuple[Tensor, str]], targets: Tensor
) -> tuple[dict[str, float], str]:
    correct, warnings_of = [], []
    for setting, (scores, warning) in zip(settings, trained, strict=True):
        # Scores that are not finite have an argmax too, which is right now and then.
        right = (scores.argmax(dim=1) == targets).sum().item()
        correct.append(right if scores.isfinite().all() else -1)
        if warning:
            warnings_of.append(f"{_label(setting)} {warning}")
    chosen = settings[correct.index(max(correct))]
    note = f"{_label(chosen)} chosen from {len(settings)} on a tenth of the training features"
    return chosen, note + (f" ({', '.join(warnings_of)})" if warnings_of else "")


def _label(setting: dict[str, float]) -> str:
    return ", ".join(f"{name}={value}" for name, value in setting.items())


def _fit_sgd(
    num_classes: int,
    settings: list[dict[str, float]],
    train_x: Tensor,
    targets: Tensor,
    rows: Tensor | None,
    test_x: Tensor,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, str]]:
    """Yields the scores of test_x, (M, C), and no warning, for each setting."""
    weights, biases = train_sgd(
        num_classes, settings, train_x.to(device), targets.to(device), rows, epochs, batch_size,
        seed,
    )  # fmt: skip
    test_x = test_x.to(device)
    for weight, bias in zip(weights, biases, strict=True):
        yield nn.functional.linear(test_x, weight, bias).cpu(), ""


@torch.no_grad()
def train_sgd(
    num_classes: int,
    settings: Sequence[Mapping[str, float]],
    features: Tensor,
    targets: Tensor,
    rows: Tensor | None,
    epochs: int,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Trains S linear classifiers on the same batches, as ``torch.optim.SGD`` trains each.

    The gradient of the mean cross-entropy of n features for the logits is (softmax - one-hot)/n,
    so that a step needs no autograd. The classifiers lie one below the other and the logits of a
    batch as (S * C, n): both products then read the memory in its order, and the batch, which
    is gathered into a buffer that stays in the cache, is read from memory once for all S.

    Args:
        num_classes: Number of classes C.
        settings: ``learning_rate`` and ``weight_decay`` of each of the S classifiers.
        features: Shape (N, D).
        targets: Class indices of shape (N,).
        rows: Indices of the features to train on. None: all.
        epochs: Passes over them.
        batch_size: Features in a step; the last of an epoch may have fewer.
        seed: Seed of the initial weights, which all S share, and of the order.

    Returns:
        Weights of shape (S, C, D) and biases of shape (S, C).
    """
    num_settings, dim = len(settings), features.shape[1]
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(num_classes, dim).normal_(std=0.01, generator=generator)
    weight = weight.to(features).repeat(num_settings, 1)  # SC x D
    bias = weight.new_zeros(len(weight), 1)
    weight_momentum, bias_momentum = torch.zeros_like(weight), torch.zeros_like(bias)

    def column(name: str) -> Tensor:
        """A setting of each row of the weights, SC x 1."""
        values = weight.new_tensor([setting[name] for setting in settings])
        return values.repeat_interleave(num_classes).unsqueeze(1)

    rate, decay = column("learning_rate"), column("weight_decay")
    decays = any(setting["weight_decay"] for setting in settings)
    classes = torch.arange(num_classes, device=features.device).unsqueeze(1)  # C x 1
    milestones = [round(epochs * part) for part in (0.6, 0.8)]
    num_rows = len(features) if rows is None else len(rows)
    buffer = features.new_empty(min(batch_size, num_rows), dim)
    for epoch in range(epochs):
        rate = rate * 0.1 ** milestones.count(epoch)
        order = torch.randperm(num_rows, generator=generator)
        order = (order if rows is None else rows[order]).to(features.device)
        batches = zip(order.split(batch_size), targets[order].split(batch_size), strict=True)
        for batch, labels in batches:
            n = len(batch)
            x = torch.index_select(features, 0, batch, out=buffer[:n])  # n x D
            logits = torch.addmm(bias, weight, x.T)  # SC x n
            error = logits.view(num_settings, num_classes, n).softmax(dim=1)
            error.sub_((classes == labels).to(error.dtype))  # SxCxn - Cxn
            error = error.view_as(logits)
            weight_momentum.addmm_(error, x, beta=0.9, alpha=1 / n)
            bias_momentum.mul_(0.9).add_(error.sum(dim=1, keepdim=True), alpha=1 / n)
            if decays:
                weight_momentum.addcmul_(weight, decay)
                bias_momentum.addcmul_(bias, decay)
            weight.addcmul_(weight_momentum, rate, value=-1)
            bias.addcmul_(bias_momentum, rate, value=-1)
    return weight.view(num_settings, num_classes, dim), bias.view(num_settings, num_classes)


def _fit_sklearn(
    num_classes: int,
    settings: list[dict[str, float]],
    train_x: Tensor,
    targets: Tensor,
    rows: Tensor | None,
    test_x: Tensor,
    *,
    max_iter: int,
) -> Iterator[tuple[Tensor, str]]:
    """Yields the probabilities of test_x, (M, C), and a warning or "", for each setting."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if rows is not None:
        train_x, targets = train_x[rows], targets[rows]
    classifier = LogisticRegression(max_iter=max_iter, warm_start=True)
    for setting in settings:
        classifier.set_params(**setting)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            classifier.fit(train_x.numpy(), targets.numpy())
        converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        # Older releases of scikit-learn give float64 for float32.
        probabilities = torch.from_numpy(classifier.predict_proba(test_x.numpy())).float()
        # Classes without a training image have no column of their own.
        scores = torch.full((len(test_x), num_classes), -1.0, dtype=probabilities.dtype)
        scores[:, torch.from_numpy(classifier.classes_)] = probabilities
        yield scores, "" if converged else f"not converged after {max_iter} iterations"


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
        num_rows = len(part.targets)
        if part.features.dim() != 2 or len(part.features) != num_rows or not part.features.numel():
            raise ValueError(
                f"The {name} features must have shape (N, D) with N targets and N, D > 0, got "
                f"{tuple(part.features.shape)} and {tuple(part.targets.shape)}."
            )
        if part.targets.min() < 0:
            raise ValueError(
                f"The {name} targets must be class indices from 0, got {part.targets.min()}."
            )
        # The extremes pass a NaN on; isfinite of each feature takes twenty times as long.
        if not torch.stack(part.features.aminmax()).isfinite().all():
            raise ValueError(f"The {name} features have values that are not finite.")
    if train.features.shape[1] != test.features.shape[1]:
        raise ValueError(
            f"The training features have {train.features.shape[1]} dimensions, the test "
            f"features {test.features.shape[1]}."
        )
    if train.targets.unique().numel() < 2:
        raise ValueError("The training features are all of one class.")
    return int(torch.cat([train.targets, test.targets]).max()) + 1


def rank_scores(scores: Tensor, targets: Tensor, note: str = "") -> ProbeResult:
    """Turns scores into accuracies.

    Args:
        scores: Of shape (N, classes), the higher the better.
        targets: True classes, shape (N,).
        note: Carried over to the result.

    Returns:
        Accuracies in percent.
    """
    num_classes = scores.shape[1]
    ranked = scores.topk(min(5, num_classes), dim=1).indices
    return count_correct(ranked, targets.to(ranked.device), num_classes, note)


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
