"""What a page shows of a network: the map of its features, neighbours, and mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Subset

from mixco_lightly.data.batches import in_batches
from mixco_lightly.data.images import ImageFacts
from mixco_lightly.evaluation.evaluator import Extraction
from mixco_lightly.evaluation.features import Features
from mixco_lightly.evaluation.knn import rank_classes
from mixco_lightly.evaluation.parts import BACKBONE, split_parts
from mixco_lightly.reports.confusion import Confusion, count_confusions
from mixco_lightly.reports.embedding_map import (
    MAX_MAP_IMAGES,
    MIN_MAP_IMAGES,
    EmbeddingMap,
    draw_map,
    reduce_to_plane,
)
from mixco_lightly.reports.pictures import Sheet, load_pixels, to_sheet, to_uri

_QUERIES = 12
_NEIGHBOURS = 6


class Embedded(NamedTuple):
    """A network's features, and the images they are features of.

    Attributes:
        name: The network's name in the page.
        train: Features (N, D) of training images.
        test: Features (M, D) of test images. The same object as ``train`` for images without test
            images.
        train_images: The training images in the same order; their transform normalises.
        test_images: The test images.
        facts: Has the statistics that the images are normalised by.
        classes: Names of the classes; empty for images without labels.
        knn_k: Number of neighbours that vote.
    """

    name: str
    train: Features
    test: Features
    train_images: Any
    test_images: Any
    facts: ImageFacts
    classes: Sequence[str]
    knn_k: int


def embed(name: str, extraction: Extraction, facts: ImageFacts, knn_k: int) -> Embedded:
    """Returns the backbone's part of extracted features, with the images they are of.

    Args:
        name: The network's name in the page.
        extraction: The features.
        facts: Has the statistics that the images are normalised by.
        knn_k: Number of neighbours that vote.
    """
    parts = split_parts(extraction.network, extraction.train, extraction.test)
    (part,) = (part for part in parts if part.name == BACKBONE)
    return Embedded(
        name,
        part.train,
        part.test,
        in_batches(extraction.images),
        in_batches(extraction.test_images),
        facts,
        extraction.images.classes,
        knn_k,
    )


class Picture(NamedTuple):
    """A picture of a page.

    Attributes:
        uri: The image.
        title: What it is.
        similarity: Cosine similarity of its features to the query's; None for a query.
    """

    uri: str
    title: str
    similarity: float | None = None


class Query(NamedTuple):
    """A test image and the training images that are nearest to it.

    Attributes:
        picture: The test image.
        predicted: The class that the neighbours vote for; empty without labels.
        is_right: Whether that is its class; None without labels.
        neighbours: The nearest first.
    """

    picture: Picture
    predicted: str
    is_right: bool | None
    neighbours: list[Picture]


class NetworkSection(NamedTuple):
    """What a page shows of a network.

    Attributes:
        name: The network's name.
        key: A name for ids and style variables.
        images: "test images", or what is shown instead.
        map: The embedding map; None for too few images.
        map_images: The number of images in it.
        sheet: The pictures of the map.
        queries: Some images with their neighbours.
        neighbours_of: How many training images the neighbours are chosen from.
        knn_k: Number of neighbours that vote.
        confusion: Predictions by class; None without labels.
    """

    name: str
    key: str
    images: str
    map: EmbeddingMap | None
    map_images: int
    sheet: Sheet
    queries: list[Query]
    neighbours_of: int
    knn_k: int
    confusion: Confusion | None


def create_section(embedded: Embedded, key: str, seed: int) -> NetworkSection:
    """Draws the map, looks up neighbours and counts confusions.

    Args:
        embedded: The network's features.
        key: A name for ids and style variables, other than that of other sections of the page.
        seed: Decides which images are shown, and the map.
    """
    train, test = embedded.train, embedded.test
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(test.targets), generator=generator)
    knn_k = min(embedded.knn_k, len(train.targets))
    predicted, confusion = None, None
    if embedded.classes:
        ranked = rank_classes(train, test.features, len(embedded.classes), knn_k)
        predicted = ranked[:, 0]
        confusion = count_confusions(test.targets, predicted, embedded.classes)

    shown = order[:MAX_MAP_IMAGES].sort().values
    sheet = to_sheet(load_pixels(Subset(embedded.test_images, shown.tolist()), embedded.facts))
    drawn = None
    if len(shown) >= MIN_MAP_IMAGES:
        points, method = reduce_to_plane(test.features[shown], seed)
        names = [_name_class(embedded, target) for target in test.targets[shown].tolist()]
        drawn = draw_map(points, method, names, embedded.classes, sheet, f"--sheet-{key}")
    return NetworkSection(
        embedded.name,
        key,
        "training images" if test is train else "test images",
        drawn,
        len(shown),
        sheet,
        _find_neighbours(embedded, choose_queries(order, predicted, test.targets), predicted),
        len(train.targets),
        knn_k,
        confusion,
    )


def choose_queries(order: Tensor, predicted: Tensor | None, targets: Tensor) -> list[int]:
    """Chooses twelve images, half of them right and half wrong if there are so many.

    Args:
        order: Indices of all images in random order.
        predicted: Predicted class of each image; None without labels.
        targets: True class of each image.

    Returns:
        Indices, those of right predictions first.
    """
    if predicted is None:
        return order[:_QUERIES].tolist()
    is_right = (predicted == targets)[order]
    right, wrong = order[is_right].tolist(), order[~is_right].tolist()
    half = _QUERIES // 2
    right = right[: max(half, _QUERIES - len(wrong))]
    return right + wrong[: _QUERIES - len(right)]


def _find_neighbours(
    embedded: Embedded, chosen: Sequence[int], predicted: Tensor | None
) -> list[Query]:
    train, test = embedded.train, embedded.test
    similarities = (
        normalize(test.features[list(chosen)], dim=1) @ normalize(train.features, dim=1).T
    )
    if train is test:  # an image is not its own neighbour
        similarities[torch.arange(len(chosen)), torch.tensor(chosen)] = -2
    count = min(_NEIGHBOURS, len(train.targets) - (train is test))
    values, nearest = similarities.topk(count, dim=1)
    pixels = load_pixels(Subset(embedded.test_images, list(chosen)), embedded.facts)
    queries: list[Query] = []
    for row, index in enumerate(chosen):
        found = nearest[row].tolist()
        near = load_pixels(Subset(embedded.train_images, found), embedded.facts)
        neighbours = [
            Picture(to_uri(pixel), _name_class(embedded, train.targets[at].item()), value)
            for pixel, at, value in zip(near, found, values[row].tolist(), strict=True)
        ]
        name = _name_class(embedded, test.targets[index].item())
        queries.append(
            Query(
                Picture(to_uri(pixels[row]), name),
                "" if predicted is None else embedded.classes[int(predicted[index])],
                None if predicted is None else bool(predicted[index] == test.targets[index]),
                neighbours,
            )
        )
    return queries


def _name_class(embedded: Embedded, target: float) -> str:
    return embedded.classes[int(target)] if embedded.classes else ""
