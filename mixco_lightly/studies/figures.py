"""Names of the figures that a study compares, with their headings."""

from __future__ import annotations

# The last kNN evaluation in metrics.csv. It decides between settings: the accuracy on the test
# images would be biased upwards by such a choice.
HELD_OUT_KNN = "held_out_knn_top1"
# The others are names in summary.json.
FIGURES = {
    "linear_top1": "linear, top-1 %",
    "knn_top1": "kNN, top-1 %",
    "classifier_top1": "classifier, top-1 %",
    "subnetwork_linear_top1": "sub-network linear, top-1 %",
    "ensemble_linear_top1": "ensemble linear, top-1 %",
    HELD_OUT_KNN: "kNN on held-out training images, %",
}
# Protocols of a further dataset, as the headings name them, and how such a heading ends.
TRANSFER_PROTOCOLS = {"torch": "linear", "knn": "kNN"}
TRANSFER_ENDING = ", top-1 %"


def transfer_heading(protocol: str, dataset: str) -> str:
    """Returns the heading of an accuracy on a further dataset.

    Examples:
        >>> from mixco_lightly.studies.figures import transfer_heading
        >>> transfer_heading("torch", "CIFAR-100")
        'linear on CIFAR-100, top-1 %'
    """
    return f"{TRANSFER_PROTOCOLS.get(protocol, protocol)} on {dataset}{TRANSFER_ENDING}"
