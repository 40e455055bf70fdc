"""What pretraining needs to know of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol

from mixco_lightly.training.options import Config

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from torch import Tensor

    from mixco_lightly.backbones.backbone import Backbone
    from mixco_lightly.backbones.multi_exit import MultiExitBackbone
    from mixco_lightly.data.mixture import Mixture
    from mixco_lightly.evaluation.evaluator import Extraction
    from mixco_lightly.evaluation.probe_result import ProbeResult

    Results = Mapping[str, Mapping[str, ProbeResult]]


class EvaluateNetwork(Protocol):
    """Measures the parts of a network on a run's images, by its protocols."""

    def __call__(self, network: Backbone | MultiExitBackbone) -> tuple[Results, Extraction]:
        """Returns the results by part and protocol, the backbone's first; and the features."""


@dataclass(frozen=True)
class Method(Generic[Config]):
    """A method; :class:`~mixco_lightly.training.recipe.Recipe` explains the fields."""

    method: str
    config_class: type[Config]
    create_model: Callable[[Backbone, Config], pl.LightningModule]
    mixed_views: Sequence[int] = ()
    create_mixer: Callable[[Config], Callable[[Tensor], Mixture]] | None = None
    num_views: int = 2
    dataset: Callable[[Path, bool], Any] | None = None
    transform: str | Callable[..., Any] | None = None
    needs_labels: bool = False
    count_negatives: Callable[[Config], int] | None = None
    check: Callable[[Config], Config] | None = None
    specialise: Callable[[Any, Config, Sequence[str]], Method[Config]] | None = None
    measure: Callable[[Any, Backbone, EvaluateNetwork], Results] | None = None
