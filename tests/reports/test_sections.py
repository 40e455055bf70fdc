"""The parts of a page, each against a case computed by hand or by a loop."""

import base64
import io
import math
import re
import sys
import types
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mixco_lightly.data.images import ImageArray, ImageFacts
from mixco_lightly.data.transforms import create_test_transform
from mixco_lightly.evaluation.features import Features
from mixco_lightly.evaluation.knn import knn_probe
from mixco_lightly.reports.charts import Line, draw_lines
from mixco_lightly.reports.confusion import count_confusions
from mixco_lightly.reports.embedding_map import draw_map, reduce_to_plane
from mixco_lightly.reports.mixing_effect import find_head, measure_mixing
from mixco_lightly.reports.network_section import Embedded, choose_queries, create_section
from mixco_lightly.reports.pictures import PICTURE_SIDE, Sheet, to_pixels, to_sheet

FACTS = ImageFacts(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))


def decode(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_pixels_are_the_images_before_they_were_normalised():
    images = torch.rand(2, 3, 4, 5)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (FACTS.mean, FACTS.std))
    pixels = to_pixels((images - mean) / std, FACTS)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, (255 * images).round().to(torch.uint8))


def test_a_single_channel_is_grey_and_a_large_image_is_shrunk():
    grey = to_pixels(torch.rand(1, 1, 70, 70), ImageFacts(mean=(0.0,), std=(1.0,)))
    assert grey.shape == (1, 3, PICTURE_SIDE, PICTURE_SIDE)
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_each_picture_lies_at_its_place_of_the_sheet():
    colours = torch.randint(256, (7, 3), dtype=torch.uint8)
    sheet = to_sheet(colours.view(7, 3, 1, 1).expand(-1, -1, 8, 8))
    image = decode(sheet.uri)
    assert image.size == (24, 24)
    assert sheet.width == 24
    for colour, left, top in zip(colours.tolist(), sheet.lefts, sheet.tops, strict=True):
        shown = image.getpixel((left + 4, top + 4))
        assert max(abs(a - b) for a, b in zip(shown, colour, strict=True)) < 12  # JPEG


def test_confusions_are_counted_as_by_a_loop():
    targets, predicted = torch.randint(5, (2, 200))
    targets[targets == 3] = 1  # a class without test images
    names = list("abcde")
    confusion = count_confusions(targets, predicted, names)
    counts = Counter(zip(targets.tolist(), predicted.tolist(), strict=True))
    assert confusion.counts == [[counts[row, column] for column in range(5)] for row in range(5)]
    assert confusion.top1 == pytest.approx(100 * (targets == predicted).float().mean().item())
    for index, one in enumerate(confusion.classes):
        total = sum(counts[index, column] for column in range(5))
        assert one.images == total
        assert one.top1 == (pytest.approx(100 * counts[index, index] / total) if total else None)
    wrong = {(names[i], names[j]): n for (i, j), n in counts.items() if i != j}
    assert [wrong[x.true, x.predicted] for x in confusion.mistakes] == [
        x.images for x in confusion.mistakes
    ]
    assert [x.images for x in confusion.mistakes] == sorted(wrong.values(), reverse=True)[:10]


def test_the_confusions_of_many_classes_are_a_picture_of_one_pixel_for_each_pair():
    confusion = count_confusions(torch.arange(200), torch.zeros(200).long(), ["c"] * 200)
    assert confusion.counts == []
    alpha = np.asarray(decode(confusion.picture))[..., 3]
    assert alpha.shape == (200, 200)
    assert (alpha[:, 0] == 255).all()
    assert (alpha[:, 1:] == 0).all()


@pytest.mark.parametrize(
    ("wrong", "expected_right"), [(0, 12), (2, 10), (6, 6), (50, 6), (98, 2), (100, 0)]
)
def test_twelve_images_are_half_right_and_half_wrong_where_there_are_so_many(wrong, expected_right):
    targets = torch.zeros(100).long()
    predicted = torch.arange(100).lt(wrong).long()
    chosen = choose_queries(torch.randperm(100), predicted, targets)
    verdicts = [predicted[index] == targets[index] for index in chosen]
    assert verdicts == [True] * expected_right + [False] * (12 - expected_right)
    assert len(set(chosen)) == 12


def test_the_effect_of_mixing_equals_a_loop_in_float64():
    torch.manual_seed(0)
    head = nn.Linear(12, 5)
    images = torch.rand(6, 3, 2, 2)
    effect = measure_mixing(nn.Flatten(), head, images, temperature=0.3)
    assert effect.lam == pytest.approx([i / 10 for i in range(11)])
    head = head.double()

    def project(image):
        return head(image.double().flatten())

    def cosine(a, b):
        return (a @ b / (a.norm() * b.norm())).item()

    for at, lam in enumerate(effect.lam):
        rows = []
        for i in range(3):
            one, two = images[i], images[i + 3]
            mixed = project(lam * one + (1 - lam) * two)
            a, b = cosine(mixed, project(one)), cosine(mixed, project(two))
            first = math.exp(a / 0.3)
            rows.append((a, b, first / (first + math.exp(b / 0.3))))
        for got, values in zip(
            (effect.first, effect.second, effect.share), zip(*rows, strict=True), strict=True
        ):
            assert got[at] == pytest.approx(sum(values) / 3, abs=1e-5)
    gaps = [abs(share - lam) for share, lam in zip(effect.share, effect.lam, strict=True)]
    assert effect.distance == pytest.approx(sum(gaps) / 11)


def test_measuring_changes_neither_weights_nor_statistics_nor_modes():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure_mixing(network, nn.Linear(12, 3), torch.rand(4, 3, 2, 2), 0.2)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training


def test_the_head_is_that_of_the_backbone():
    module = nn.Module()
    assert find_head(module) is None
    module.projection_heads = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 2)])
    assert find_head(module) is module.projection_heads[1]


def test_drawings_have_the_colour_of_the_text_and_ids_of_their_own():
    charts = [draw_lines(title, "x", "y", [Line("a", [0, 1], [0, 2], [1, 1])]) for title in "ut"]
    for chart in charts:
        assert "currentColor" in chart.svg
        assert "#0a0b0c" not in chart.svg
        assert "<metadata" not in chart.svg
        ids = set(re.findall(r'\bid="([^"]+)"', chart.svg))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', chart.svg)) <= ids
    one, two = (set(re.findall(r'\bid="([^"]+)"', chart.svg)) for chart in charts)
    assert not one & two
    assert charts[1].description == "t over x: a from 0 to 2."


def embed(classes, count=40):
    """Features of noise and their images, of one class after another."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 8, 8, 3), dtype=torch.uint8, generator=rng).numpy()
    targets = [index % max(1, len(classes)) for index in range(count)]
    transform = create_test_transform(FACTS, 8)
    images = ImageArray(pixels, targets, classes, transform)
    features = Features(torch.randn(count, 6, generator=rng), torch.tensor(targets))
    return Embedded("backbone", features, features, images, images, FACTS, classes, 5)


def test_names_of_classes_are_text_in_the_map():
    name = "</script><b>"
    sheet = Sheet("", [0] * 5, [0] * 5, 8, 24)
    drawn = draw_map(np.zeros((5, 2)), "t-SNE", [name] * 5, [name], sheet, "--sheet")
    assert name not in drawn.script
    assert drawn.script.count("</script>") == 1


@pytest.mark.parametrize("classes", [["a", "b"], [], [f"class {i}" for i in range(200)]])
def test_a_section_shows_the_vote_of_the_neighbours(classes, monkeypatch):
    monkeypatch.setattr(
        "mixco_lightly.reports.network_section.reduce_to_plane",
        lambda features, seed: (np.zeros((len(features), 2)), "t-SNE"),
    )
    # 40 training images and 30 test images.
    embedded = embed(classes)
    test = Features(*(values[:30] for values in embed(classes, 41).test))
    section = create_section(embedded._replace(test=test), "one", seed=0)
    assert section.map_images == 30
    assert section.images == "test images"
    assert len(section.queries) == 12
    if not classes:
        assert section.confusion is None
        assert {query.is_right for query in section.queries} == {None}
        return
    assert section.confusion.top1 == pytest.approx(knn_probe(embedded.train, test, k=5).top1)
    rights = [query.is_right for query in section.queries]
    assert rights == sorted(rights, reverse=True)
    for query in section.queries:
        assert query.is_right == (query.predicted == query.picture.title)
        similarities = [near.similarity for near in query.neighbours]
        assert similarities == sorted(similarities, reverse=True)


def test_an_image_is_not_its_own_neighbour_where_there_are_no_test_images():
    section = create_section(embed([], 4), "one", seed=0)
    assert section.map is None  # too few
    assert section.images == "training images"
    assert [len(query.neighbours) for query in section.queries] == [3] * 4
    assert all(x.similarity < 0.999 for query in section.queries for x in query.neighbours)


def test_the_same_seed_places_the_same_features_at_the_same_points():
    features = torch.randn(12, 4)
    one, two = (reduce_to_plane(features, seed=3)[0] for _ in range(2))
    assert one.shape == (12, 2)
    assert (one == two).all()


def test_umap_places_the_points_where_it_is_installed(monkeypatch):
    calls = []

    class UMAP:
        def __init__(self, **options):
            calls.append(options)

        def fit_transform(self, rows):
            calls.append(rows)
            return rows[:, :2]

    monkeypatch.setattr("mixco_lightly.reports.embedding_map.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    points, method = reduce_to_plane(torch.tensor([[3.0, 4.0, 0.0]] * 6), seed=3)
    assert method == "UMAP"
    assert points == pytest.approx(np.array([[0.6, 0.8]] * 6))
    assert calls[0] == {"n_neighbors": 5, "random_state": 3, "n_jobs": 1}
