"""MixCo, mix-up contrastive learning, as a plugin for the Lightly framework."""

from typing import TYPE_CHECKING

from mixco_lightly.lazy import lazy_exports

if TYPE_CHECKING:
    from mixco_lightly.backbones import (
        Backbone as Backbone,
        MultiExitBackbone as MultiExitBackbone,
        create_backbone as create_backbone,
        export_backbone as export_backbone,
        load_backbone as load_backbone,
        push_to_hub as push_to_hub,
    )
    from mixco_lightly.data import (
        MixCoCollate as MixCoCollate,
        MixCollate as MixCollate,
        Mixer as Mixer,
        Mixture as Mixture,
        mix_pairs as mix_pairs,
    )
    from mixco_lightly.evaluation import (
        Features as Features,
        MutualInformation as MutualInformation,
        ProbeResult as ProbeResult,
        estimate_mutual_information as estimate_mutual_information,
        extract_features as extract_features,
        knn_probe as knn_probe,
        linear_probe as linear_probe,
    )
    from mixco_lightly.loss import (
        IMixLoss as IMixLoss,
        KeyQueue as KeyQueue,
        MixCoLoss as MixCoLoss,
        MixCoLossComponents as MixCoLossComponents,
        SelfConLoss as SelfConLoss,
        UnMixLoss as UnMixLoss,
    )

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    backbones=(
        "Backbone MultiExitBackbone create_backbone export_backbone load_backbone push_to_hub"
    ),
    data="MixCoCollate MixCollate Mixer Mixture mix_pairs",
    evaluation=(
        "Features ProbeResult MutualInformation "
        "extract_features knn_probe linear_probe estimate_mutual_information"
    ),
    loss="IMixLoss KeyQueue MixCoLoss MixCoLossComponents SelfConLoss UnMixLoss",
)
