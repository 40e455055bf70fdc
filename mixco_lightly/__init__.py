"""MixCo, mix-up contrastive learning, as a plugin for the Lightly framework."""

from mixco_lightly.data.collate import MixCoCollate
from mixco_lightly.data.mixture import Mixture, mix_pairs
from mixco_lightly.evaluation.features import Features, extract_features
from mixco_lightly.evaluation.knn import knn_probe
from mixco_lightly.evaluation.linear_probe import ProbeResult, linear_probe
from mixco_lightly.evaluation.mutual_information import (
    MutualInformation,
    estimate_mutual_information,
)
from mixco_lightly.export import export_backbone, load_backbone
from mixco_lightly.loss.key_queue import KeyQueue
from mixco_lightly.loss.mixco_loss import MixCoLoss, MixCoLossComponents
from mixco_lightly.loss.selfcon_loss import SelfConLoss
from mixco_lightly.models.backbone import create_backbone
from mixco_lightly.models.multi_exit import MultiExitBackbone

__version__ = "0.1.0"

__all__ = [
    "Features",
    "KeyQueue",
    "MixCoCollate",
    "MixCoLoss",
    "MixCoLossComponents",
    "Mixture",
    "MultiExitBackbone",
    "MutualInformation",
    "ProbeResult",
    "SelfConLoss",
    "create_backbone",
    "estimate_mutual_information",
    "export_backbone",
    "extract_features",
    "knn_probe",
    "linear_probe",
    "load_backbone",
    "mix_pairs",
]
