"""The figures that a study compares, with their headings."""

from __future__ import annotations

from mixco_lightly.evaluation.figures import RANDOM_INIT, name_figure
from mixco_lightly.evaluation.further_protocols import FewShot

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
FURTHER = {
    name_figure("backbone", "torch", "ECE"): "linear, ECE %",
    name_figure("backbone", "corruptions"): "linear on corrupted images, top-1 %",
    name_figure("backbone", "corruptions", "ECE"): "linear on corrupted images, ECE %",
    **{
        name_figure("backbone", "few-shot", f"{shots}-shot"): f"class means, {shots}-shot %"
        for shots in FewShot.shots
    },
}
SPEED = "images_per_second"
# Protocols of a further dataset, as the headings name them, and how such a heading ends.
TRANSFER_PROTOCOLS = {
    "torch": "linear",
    "knn": "kNN",
    "paper": "linear evaluation",
    "few-shot": "class means",
    "corruptions": "linear (corrupted)",
    "shift": "linear (shifted)",
    "ood": "outlier detection",
}
TRANSFER_ENDING = " %"


def transfer_heading(protocol: str, dataset: str, measure: str = "top-1") -> str:
    """Returns the heading of a figure on a further dataset.

    Examples:
        >>> from mixco_lightly.studies.figures import transfer_heading
        >>> transfer_heading("torch", "CIFAR-100")
        'linear on CIFAR-100, top-1 %'
        >>> transfer_heading("ood", "CIFAR-10", "AUROC")
        'outlier detection on CIFAR-10, AUROC %'
    """
    return f"{TRANSFER_PROTOCOLS.get(protocol, protocol)} on {dataset}, {measure}{TRANSFER_ENDING}"
