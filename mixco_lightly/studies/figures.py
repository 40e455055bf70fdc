"""Headings of the figures of further datasets in a study's table."""

from __future__ import annotations

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
