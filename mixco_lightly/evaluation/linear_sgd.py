"""The torch solver of the linear probe: SGD on cached features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn


def fit_sgd(
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
    """Yields the scores of ``test_x``, shape (M, C), and an empty warning for each setting."""
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
    """Trains S linear classifiers on the same batches, each as ``torch.optim.SGD`` would.

    A step needs no autograd: for n features the gradient of the mean cross-entropy with respect
    to the logits is (softmax - one-hot) / n. The classifiers' weights are stacked to (S * C, D)
    and the logits of a batch to (S * C, n), so both products read memory sequentially. A batch is
    gathered once, into a buffer that stays in the cache, for all S classifiers.

    Args:
        num_classes: Number of classes C.
        settings: ``learning_rate`` and ``weight_decay`` of each of the S classifiers.
        features: Shape (N, D).
        targets: Class indices of shape (N,).
        rows: Indices of the features to train on, or None for all.
        epochs: Passes over these features.
        batch_size: Features in a step; the last step of an epoch may have fewer.
        seed: Seed of the order and of the initial weights, which all S classifiers share.

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
        """Returns a setting for each row of the weights, SC x 1."""
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
