"""The figures that a study compares, with their headings."""

from __future__ import annotations

from mixco_lightly.evaluation.figures import RANDOM_INIT, name_figure

# The last kNN evaluation in metrics.csv. It decides between settings: the accuracy on the test
# images would be biased upwards by such a choice.
HELD_OUT_KNN = "held_out_knn_top1"
FIGURES = {
    name_figure("backbone", "torch"): "linear, top-1 %",
    name_figure("backbone", "knn"): "kNN, top-1 %",
    name_figure("backbone", "classifier"): "classifier, top-1 %",
    name_figure("subnetwork", "torch"): "sub-network linear, top-1 %",
    name_figure("ensemble", "torch"): "ensemble linear, top-1 %",
    name_figure("subnetwork", "classifier"): "sub-network classifier, top-1 %",
    name_figure("ensemble", "classifier"): "ensemble classifier, top-1 %",
    HELD_OUT_KNN: "kNN on held-out training images, %",
    name_figure(RANDOM_INIT, "torch"): "random initialisation linear, top-1 %",
    name_figure(RANDOM_INIT, "knn"): "random initialisation kNN, top-1 %",
}
# What a study can show beside the accuracies, if it names it.
SPEED = "images_per_second"
# Protocols of a further dataset, as the headings name them, and how such a heading ends.
TRANSFER_PROTOCOLS = {"torch": "linear", "knn": "kNN", "paper": "linear evaluation"}
TRANSFER_ENDING = ", top-1 %"


def transfer_heading(protocol: str, dataset: str) -> str:
    """Returns the heading of an accuracy on a further dataset.

    Examples:
        >>> from mixco_lightly.studies.figures import transfer_heading
        >>> transfer_heading("torch", "CIFAR-100")
        'linear on CIFAR-100, top-1 %'
    """
    return f"{TRANSFER_PROTOCOLS.get(protocol, protocol)} on {dataset}{TRANSFER_ENDING}"
