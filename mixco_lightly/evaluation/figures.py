"""The names of accuracies in summary.json."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mixco_lightly.evaluation.probe_result import ProbeResult
from mixco_lightly.evaluation.protocols import PROTOCOLS

# The part that is the backbone at its initialisation.
RANDOM_INIT = "random_init"


def name_figure(part: str, protocol: str, metric: str = "top1") -> str:
    """Names an accuracy in summary.json.

    Args:
        part: What was measured: a name of :func:`mixco_lightly.evaluation.parts.name_parts`, or
            "random_init". The backbone's figures have no prefix.
        protocol: A protocol's name, or "classifier" for a classifier that the run trained.
        metric: "top1", "top5", or the name of a further measure, such as "ECE".

    Returns:
        The name.

    Examples:
        >>> from mixco_lightly.evaluation.figures import name_figure
        >>> name_figure("backbone", "torch"), name_figure("subnetwork_1", "knn")
        ('linear_top1', 'subnetwork_1_knn_top1')
        >>> name_figure("backbone", "torch", "ECE")
        'linear_ece'
    """
    prefix = "" if part == "backbone" else f"{part}_"
    figure = PROTOCOLS[protocol].figure if protocol in PROTOCOLS else protocol
    return f"{prefix}{figure}_{metric.lower().replace('-', '_').replace(' ', '_')}"


def summarise(results: Mapping[str, Mapping[str, ProbeResult]]) -> dict[str, float]:
    """Collects the accuracies of a run for summary.json.

    Args:
        results: Results by part and protocol, as :func:`name_figure` takes these.

    Returns:
        The top-1 accuracies and further measures by their names, and the top-5 accuracy of the
        backbone's linear probe.
    """
    figures = {}
    for part, protocols in results.items():
        for protocol, result in protocols.items():
            if not math.isnan(result.top1):
                figures[name_figure(part, protocol)] = result.top1
            for measure, value in result.measures.items():
                figures[name_figure(part, protocol, measure)] = value
    linear = results.get("backbone", {}).get("torch")
    if linear is not None:
        figures[name_figure("backbone", "torch", "top5")] = linear.top5
    return figures
