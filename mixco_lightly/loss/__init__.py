"""Contrastive losses and the queue of keys."""

from typing import TYPE_CHECKING

from mixco_lightly.lazy import lazy_exports

if TYPE_CHECKING:
    from mixco_lightly.loss.imix_loss import IMixLoss as IMixLoss
    from mixco_lightly.loss.key_queue import KeyQueue as KeyQueue
    from mixco_lightly.loss.mixco_loss import (
        MixCoLoss as MixCoLoss,
        MixCoLossComponents as MixCoLossComponents,
    )
    from mixco_lightly.loss.selfcon_loss import SelfConLoss as SelfConLoss
    from mixco_lightly.loss.unmix_loss import UnMixLoss as UnMixLoss

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    imix_loss="IMixLoss",
    key_queue="KeyQueue",
    mixco_loss="MixCoLoss MixCoLossComponents",
    selfcon_loss="SelfConLoss",
    unmix_loss="UnMixLoss",
)
