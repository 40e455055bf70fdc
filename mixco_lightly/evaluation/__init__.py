"""What is measured: features, probes, mutual information, and the records of an evaluation."""

from typing import TYPE_CHECKING

from mixco_lightly.lazy import lazy_exports

if TYPE_CHECKING:
    from mixco_lightly.evaluation.classifiers import measure_classifiers as measure_classifiers
    from mixco_lightly.evaluation.evaluator import (
        Extraction as Extraction,
        evaluate_parts as evaluate_parts,
    )
    from mixco_lightly.evaluation.exits import exit_probe as exit_probe
    from mixco_lightly.evaluation.features import (
        Features as Features,
        extract_features as extract_features,
    )
    from mixco_lightly.evaluation.image_probes import (
        finetune_probe as finetune_probe,
        paper_probe as paper_probe,
    )
    from mixco_lightly.evaluation.knn import knn_probe as knn_probe
    from mixco_lightly.evaluation.linear import linear_probe as linear_probe
    from mixco_lightly.evaluation.mutual_information import (
        MutualInformation as MutualInformation,
        estimate_mutual_information as estimate_mutual_information,
    )
    from mixco_lightly.evaluation.parts import name_parts as name_parts
    from mixco_lightly.evaluation.probe_result import (
        EpochResults as EpochResults,
        ProbeResult as ProbeResult,
    )
    from mixco_lightly.evaluation.protocols import PROTOCOLS as PROTOCOLS

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    classifiers="measure_classifiers",
    evaluator="Extraction evaluate_parts",
    exits="exit_probe",
    features="Features extract_features",
    image_probes="finetune_probe paper_probe",
    knn="knn_probe",
    linear="linear_probe",
    mutual_information="MutualInformation estimate_mutual_information",
    parts="name_parts",
    probe_result="EpochResults ProbeResult",
    protocols="PROTOCOLS",
)
