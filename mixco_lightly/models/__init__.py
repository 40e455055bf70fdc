"""LightningModules that connect a backbone, a projection head and a loss."""

from typing import TYPE_CHECKING

from mixco_lightly.lazy import lazy_exports

if TYPE_CHECKING:
    from mixco_lightly.models.chunks import run_in_chunks as run_in_chunks
    from mixco_lightly.models.imix import IMixMoCo as IMixMoCo, IMixNPair as IMixNPair
    from mixco_lightly.models.moco import MoCo as MoCo
    from mixco_lightly.models.selfcon import (
        SelfCon as SelfCon,
        SelfConClassifier as SelfConClassifier,
    )
    from mixco_lightly.models.simclr import SimCLR as SimCLR
    from mixco_lightly.models.sync_batchnorm import TimmSyncBatchNorm as TimmSyncBatchNorm

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    chunks="run_in_chunks",
    imix="IMixMoCo IMixNPair",
    moco="MoCo",
    selfcon="SelfCon SelfConClassifier",
    simclr="SimCLR",
    sync_batchnorm="TimmSyncBatchNorm",
)
