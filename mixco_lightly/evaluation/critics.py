"""Critics: networks that score pairs of features.

Shapes in the comments: k rows of x, l rows of y, h hidden units, c dimensions of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mixco_lightly.evaluation.information_bounds import ScoreSums, sum_scores

# How many scores (concatenated: times hidden units) a critic computes at once.
_BLOCK_ELEMENTS = 2**22


class SeparableCritic(nn.Module):
    """The inner product of two embeddings: K x K scores for 2 K forward passes.

    Adds a learned constant, which matters for NWJ only: its optimal score is the logarithm of the
    density ratio plus 1.

    Args:
        x_dim: Dimensions of x.
        y_dim: Dimensions of y.
        hidden_dim: Hidden units of each layer; the embeddings have a quarter as many dimensions.
    """

    def __init__(self, x_dim: int, y_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.ones(()))
        self.embed_x, self.embed_y = (
            nn.Sequential(
                nn.Linear(dim, hidden_dim),
                nn.ReLU(),
                nn.Linear(hidden_dim, hidden_dim),
                nn.ReLU(),
                nn.Linear(hidden_dim, max(1, hidden_dim // 4)),
            )
            for dim in (x_dim, y_dim)
        )

    def score_blocks(self, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        """Yields the scores of each x with each y, in blocks of rows of shape (k, l)."""
        columns = self.embed_y(y).T
        rows = max(1, _BLOCK_ELEMENTS // len(y))
        for block in self.embed_x(x).split(rows):
            yield block @ columns + self.constant  # kc,cl->kl


class ConcatenatedCritic(nn.Module):
    """A network on the concatenated pair: K x K forward passes, sharing only the first layer.

    Args:
        x_dim: Dimensions of x.
        y_dim: Dimensions of y.
        hidden_dim: Hidden units of each layer.
    """

    def __init__(self, x_dim: int, y_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.ones(()))
        # A linear layer on (x, y) is the sum of one on x and one on y.
        self.first_x = nn.Linear(x_dim, hidden_dim)
        self.first_y = nn.Linear(y_dim, hidden_dim, bias=False)
        self.rest = nn.Sequential(
            nn.ReLU(), nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1)
        )

    def score_blocks(self, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        """Yields the scores of each x with each y, in blocks of rows of shape (k, l)."""
        hidden_y = self.first_y(y)  # l x h
        rows = max(1, _BLOCK_ELEMENTS // hidden_y.numel())
        for block in self.first_x(x).split(rows):
            # k x l x h -> k x l
            yield self.rest(block.unsqueeze(1) + hidden_y).squeeze(2) + self.constant


Critic = SeparableCritic | ConcatenatedCritic
CRITICS: dict[str, type[Critic]] = {
    "separable": SeparableCritic,
    "concatenated": ConcatenatedCritic,
}


@torch.no_grad()
def sum_all_scores(critic: Critic, x: Tensor, y: Tensor) -> ScoreSums:
    """Reduces the scores of all pairs block by block, so that they need not fit into memory.

    Args:
        critic: Scores the pairs.
        x: Features, shape (K, D_x).
        y: Features, shape (K, D_y).

    Returns:
        The reduced scores in double precision.
    """
    parts: list[ScoreSums] = []
    offset = 0
    for scores in critic.score_blocks(x, y):
        parts.append(sum_scores(scores, offset))
        offset += len(scores)
    return ScoreSums(*(torch.cat(column).double() for column in zip(*parts, strict=True)))
