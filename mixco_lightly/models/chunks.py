"""Runs a network over a large batch in chunks, with the memory of one chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_in_chunks(network: nn.Module, images: Tensor, chunk_size: int) -> Any:
    """Runs a network chunk by chunk, and again chunk by chunk for its gradient.

    A contrastive loss needs the features of the whole batch at once, but not the activations before
    them. As in gradient caching [0], the first forward keeps features only. The backward pass
    repeats the forward of one chunk at a time, with the same random numbers and autocast, and frees
    its activations before the next. torch's activation checkpointing does both, so the loss, a
    GradScaler and distributed data parallel see an ordinary graph.

    If the network treats each image by itself, features and gradients are those of the whole batch
    up to rounding. BatchNorm does not: each chunk is normalised by its own statistics, and the
    running statistics move once for each chunk. The repeated forward leaves all buffers unchanged.
    Dropout and stochastic depth draw other numbers than for the whole batch.

    - [0]: Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021,
      https://arxiv.org/abs/2101.06983

    Args:
        network: Maps images to features (N, D), or to a list of such features.
        images: Shape (N, C, H, W).
        chunk_size: Most images in a chunk; the chunks are as equal as possible. 0: the network runs
            once, and keeps its activations.

    Returns:
        What the network returns for all images.

    Examples:
        >>> import torch
        >>> from mixco_lightly import create_backbone
        >>> from mixco_lightly.models import run_in_chunks
        >>> backbone = create_backbone("test_vit", image_size=32)
        >>> run_in_chunks(backbone, torch.rand(10, 3, 32, 32), chunk_size=4).shape
        torch.Size([10, 64])
    """
    count = math.ceil(len(images) / chunk_size) if chunk_size else 1
    if count <= 1:
        return network(images)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _unchanged_buffers(network)

    chunks = [
        checkpoint(network, chunk, use_reentrant=False, context_fn=contexts)
        for chunk in images.tensor_split(count)
    ]
    if isinstance(chunks[0], Tensor):
        return torch.cat(chunks)
    return [torch.cat(parts) for parts in zip(*chunks, strict=True)]


@contextmanager
def _unchanged_buffers(network: nn.Module) -> Iterator[None]:
    """Restores the buffers at the end; BatchNorm's statistics have had the chunk already."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
