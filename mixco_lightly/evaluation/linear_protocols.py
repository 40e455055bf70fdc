"""The protocols that train a linear classifier on features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mixco_lightly.evaluation.probe_result import ProbeResult, join_notes, rank_scores
from mixco_lightly.evaluation.protocol import Outcome, Protocol, Setup

# The commands' options need the protocols' names: --help must not wait for torch.
if TYPE_CHECKING:
    from torch import Tensor

    from mixco_lightly.evaluation.features import Features
    from mixco_lightly.evaluation.parts import Part

# Backbones need different learning rates, so the torch probe chooses one of these on a tenth of the
# training features.
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# The scikit-learn probe chooses one of these in the same way. The last is scikit-learn's default;
# few labels and many features need a stronger penalty. With a larger C the fit takes longer and
# overfits.
C_VALUES = (0.0001, 0.001, 0.01, 0.1, 1.0)


class LinearProbe(Protocol):
    """A linear classifier on features; a setting is chosen on a tenth of the training features.

    Attributes:
        solver: Solver of :func:`mixco_lightly.linear_probe`.
    """

    solver: ClassVar[str]
    has_ensemble = True

    @property
    @abstractmethod
    def choices(self) -> dict[str, Sequence[float]]:
        """Options of :func:`mixco_lightly.linear_probe`, with the values to choose from."""

    def measure(self, part: Part, setup: Setup) -> Outcome:
        """Trains and tests the classifier."""
        from mixco_lightly.evaluation.linear import linear_scores

        reason = _why_no_choice(part.train)
        scores, note = linear_scores(
            part.train,
            part.test,
            self.solver,
            seed=setup.seed,
            device=setup.device,
            **({} if reason else self.choices),  # type: ignore[arg-type]
        )
        result = self._rank(scores, part.test.targets, join_notes(reason, note))
        return Outcome(result, scores=scores)

    def measure_ensemble(self, parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Outcome:
        """Averages the classifiers' scores."""
        from mixco_lightly.evaluation.exits import average_scores

        scores = [outcome.scores for outcome in outcomes if outcome.scores is not None]
        reason = _why_no_choice(parts[0].train)
        return Outcome(self._rank(average_scores(scores), parts[0].test.targets, reason))

    def _rank(self, scores: Tensor, targets: Tensor, note: str) -> ProbeResult:
        """Computes the measures of scores."""
        return rank_scores(scores, targets, note)


def _why_no_choice(train: Features) -> str:
    if train.targets.bincount().max() > 1:
        return ""
    return "one image a class, none to choose a setting on: linear_probe's default is taken"


@dataclass(frozen=True)
class TorchProbe(LinearProbe):
    """The linear probe trained by SGD.

    Args:
        learning_rates: Learning rates to choose from.
    """

    name = solver = "torch"
    label = "linear, torch"
    figure = "linear"
    learning_rates: tuple[float, ...] = LEARNING_RATES

    @property
    def choices(self) -> dict[str, Sequence[float]]:
        """The learning rates to choose from."""
        return {"learning_rate": self.learning_rates}

    def _rank(self, scores: Tensor, targets: Tensor, note: str) -> ProbeResult:
        from mixco_lightly.evaluation.calibration import add_calibration

        return add_calibration(super()._rank(scores, targets, note), scores, targets)


@dataclass(frozen=True)
class SklearnProbe(LinearProbe):
    """The linear probe as scikit-learn's logistic regression.

    Args:
        C_values: Inverse penalties to choose from.
    """

    name = solver = "sklearn"
    label = "linear, scikit-learn"
    figure = "sklearn"
    C_values: tuple[float, ...] = C_VALUES

    @property
    def choices(self) -> dict[str, Sequence[float]]:
        """The inverse penalties to choose from."""
        return {"C": self.C_values}
