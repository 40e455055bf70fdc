"""Checks of a loss's settings, and of the projections and mixtures that it is called with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixco_lightly.data.mixture import Mixture


def check_temperature(name: str, value: float) -> None:
    """Raises a ValueError if a temperature is not a positive finite number."""
    if not (isinstance(value, (int, float)) and 0 < value < math.inf):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}.")


def check_mix_weight(value: float) -> None:
    """Raises a ValueError if mix_weight is not a finite number of at least 0."""
    if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
        raise ValueError(f"mix_weight must be a finite number of at least 0, got {value!r}.")


def check_views(
    out0: Tensor,
    out1: Tensor,
    mixed0: Tensor | None,
    mixture0: Mixture | None,
    mixed1: Tensor | None,
    mixture1: Mixture | None,
    queue_dim: int | None,
) -> None:
    """Checks two views and their mixtures, without making a GPU wait.

    Args:
        out0: Projections of the first view, shape (N, dim).
        out1: Projections of the second view, shape (N, dim).
        mixed0: Projections of ``mixture0.images``, shape (M, dim).
        mixture0: Mixtures of the first view's images.
        mixed1: Projections of ``mixture1.images``, shape (M, dim).
        mixture1: Mixtures of the second view's images.
        queue_dim: Dimension of the keys in the queue, or None if the loss has no queue.

    Raises:
        TypeError: If a projection is no tensor or a mixture no :class:`Mixture`.
        ValueError: If shapes, dtypes or values do not fit together. Values of indices and weights
            are checked on a CPU only.
    """
    arguments = "(out0, out1, mixed0, mixture0, mixed1, mixture1)"
    for name, out in [("out0", out0), ("out1", out1)]:
        _check_is_tensor(name, out, arguments)
    if out0.dim() != 2 or out0.shape != out1.shape:
        raise ValueError(
            "out0 and out1 must have the same shape (N, dim), "
            f"got {tuple(out0.shape)} and {tuple(out1.shape)}."
        )
    n, dim = out0.shape
    _check_batch("out0 and out1 need", n, dim, queue_dim)
    if queue_dim is not None and (mixed1 is not None or mixture1 is not None):
        raise ValueError(
            "mixed1 and mixture1 need a loss without a queue: with a queue only the query view is "
            "mixed. Leave them out, or pass memory_bank_size=0."
        )
    for view, mixed, mixture in [("0", mixed0, mixture0), ("1", mixed1, mixture1)]:
        if (mixed is None) != (mixture is None):
            given, missing = ("mixed", "mixture") if mixture is None else ("mixture", "mixed")
            raise ValueError(
                f"{given}{view} was given without {missing}{view}. Pass both: the mixtures' "
                "projections and the Mixture they come from."
            )
        if mixed is not None and mixture is not None:
            _check_mixture(view, mixed, mixture, n, dim)


def check_mixtures_and_keys(
    mixed: Tensor, keys: Tensor, mixture: Mixture, queue_dim: int | None
) -> None:
    """Checks mixtures and the keys of their images, without making a GPU wait.

    Args:
        mixed: Projections of ``mixture.images``, shape (M, dim).
        keys: Projections of the images, shape (N, dim).
        mixture: Mixtures of the images.
        queue_dim: Dimension of the keys in the queue, or None if the loss has no queue.

    Raises:
        TypeError: If a projection is no tensor or the mixture no :class:`Mixture`.
        ValueError: If shapes, dtypes or values do not fit together. Values of indices and weights
            are checked on a CPU only.
    """
    _check_is_tensor("keys", keys, "(mixed, keys, mixture)")
    if keys.dim() != 2:
        raise ValueError(f"keys must have shape (N, dim), got {tuple(keys.shape)}.")
    n, dim = keys.shape
    _check_batch("keys needs", n, dim, queue_dim)
    _check_mixture("", mixed, mixture, n, dim)


def _check_is_tensor(name: str, out: object, arguments: str) -> None:
    if not isinstance(out, Tensor):
        raise TypeError(
            f"{name} must be a tensor of projections, got {type(out).__name__}. The "
            f"arguments are {arguments}."
        )


def _check_batch(names_need: str, n: int, dim: int, queue_dim: int | None) -> None:
    if queue_dim is None and n < 2:
        raise ValueError(f"Without a queue the batch needs at least 2 images, got {n}.")
    if n < 1:
        raise ValueError(f"The batch is empty: {names_need} at least 1 row.")
    if queue_dim is not None and queue_dim != dim:
        raise ValueError(
            f"memory_bank_size has dim {queue_dim}, the projections have {dim}. Give the loss "
            f"memory_bank_size=(n, {dim})."
        )


def _check_mixture(view: str, mixed: object, mixture: object, n: int, dim: int) -> None:
    if not isinstance(mixed, Tensor) or not isinstance(mixture, Mixture):
        if isinstance(mixed, Mixture) and isinstance(mixture, Tensor):
            advice = f"Swap the two: mixed{view} comes first."
        else:
            advice = "Pass one Mixture, such as batch[-1][0] from MixCoCollate, not a list of them."
        raise TypeError(
            f"mixed{view} must be a tensor, the projections of mixture{view}.images, and "
            f"mixture{view} a Mixture, got {type(mixed).__name__} and {type(mixture).__name__}. "
            + advice
        )
    m = len(mixture.lam) if mixture.lam.dim() else 0
    if not mixture.first.shape == mixture.second.shape == mixture.lam.shape == (m,):
        raise ValueError(
            f"first, second and lam of mixture{view} must have one shape (M,), got "
            f"{tuple(mixture.first.shape)}, {tuple(mixture.second.shape)} and "
            f"{tuple(mixture.lam.shape)}."
        )
    if m == 0:
        advice = f" Leave out mixed{view} and mixture{view} for a batch without mixtures."
        raise ValueError(
            f"mixture{view} is empty: mixing needs a batch of at least 2 images."
            + (advice if view else "")
        )
    if mixed.shape != (m, dim):
        raise ValueError(
            f"mixed{view} must have shape {(m, dim)} for the {m} mixtures of "
            f"mixture{view}, got {tuple(mixed.shape)}."
        )
    indices = torch.int64, torch.int32
    if mixture.first.dtype not in indices or mixture.second.dtype not in indices:
        raise ValueError(
            f"first and second of mixture{view} must be int64, the indices of images in the batch, "
            f"got {mixture.first.dtype} and {mixture.second.dtype}."
        )
    if not mixture.lam.is_floating_point():
        raise ValueError(
            f"lam of mixture{view} must be floating point numbers in [0, 1], the weights of the "
            f"first images, got {mixture.lam.dtype}."
        )
    # Reading values makes a GPU wait, and torch.compile has no values to read.
    if torch.compiler.is_compiling():
        return
    if mixture.first.device.type == mixture.second.device.type == "cpu":
        pairs = torch.stack([mixture.first, mixture.second])
        if pairs.min() < 0 or pairs.max() >= n:
            wrong = pairs.min() if pairs.min() < 0 else pairs.max()
            raise ValueError(
                f"mixture{view} names image {int(wrong)} of a batch of {n}. Pass the mixture of "
                "this batch."
            )
    if mixture.lam.device.type == "cpu":
        is_weight = (mixture.lam >= 0) & (mixture.lam <= 1)
        if not is_weight.all():
            raise ValueError(
                f"lam of mixture{view} must be in [0, 1], got {mixture.lam[~is_weight][0].item()}."
            )
