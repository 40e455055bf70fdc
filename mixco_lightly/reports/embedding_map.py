"""The embedding map: test images in the plane, near each other where their features are."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import normalize

from mixco_lightly.reports.pictures import Sheet

# t-SNE of so many images takes a few seconds.
MAX_MAP_IMAGES = 1000
# Fewer have no neighbourhoods.
MIN_MAP_IMAGES = 5
_UNLABELLED = "#2a7fd4"
# Side of a thumbnail that is shown on hover, in pixels of the screen.
_HOVER_SIDE = 96


class EmbeddingMap(NamedTuple):
    """A map, as parts of a page.

    Attributes:
        script: The script that draws it.
        div: The element that it is drawn in.
        method: How it was made.
        colours: Colour of each class.
    """

    script: str
    div: str
    method: str
    colours: dict[str, str]


def reduce_to_plane(features: Tensor, seed: int) -> tuple[npt.NDArray[np.float64], str]:
    """Reduces normalised features (N, D) to (N, 2) by UMAP if umap-learn is installed, or t-SNE.

    Returns:
        The points and the method's name.
    """
    rows = normalize(features, dim=1).numpy()
    if find_spec("umap") is not None:
        from umap import UMAP

        neighbours = min(15, len(rows) - 1)
        reducer = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)
        return np.asarray(reducer.fit_transform(rows), dtype=np.float64), "UMAP"
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(rows) - 1) / 3)
    reducer = TSNE(perplexity=perplexity, random_state=seed)
    return np.asarray(reducer.fit_transform(rows), dtype=np.float64), "t-SNE"


def colour_classes(classes: Sequence[str]) -> dict[str, str]:
    """Returns a colour for each class: hues around the circle, at two lightnesses."""
    colours = {}
    for index, name in enumerate(classes):
        lightness = 0.62 if index % 2 else 0.45
        rgb = colorsys.hls_to_rgb(index / len(classes), lightness, 0.7)
        colours[name] = "#" + "".join(f"{round(255 * value):02x}" for value in rgb)
    return colours


def draw_map(
    points: npt.NDArray[np.float64],
    method: str,
    names: Sequence[str],
    classes: Sequence[str],
    sheet: Sheet,
    style: str,
) -> EmbeddingMap:
    """Draws points by class; the one under the mouse shows its picture.

    Args:
        points: Shape (N, 2).
        method: How they were made.
        names: Class of each point; all empty for images without labels.
        classes: All classes, in the order of their colours.
        sheet: Picture of each point.
        style: The page's CSS variable that has the sheet.
    """
    from bokeh.embed import components
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    colours = colour_classes(classes)
    scale = _HOVER_SIDE / sheet.side
    source = ColumnDataSource(
        {
            "x": points[:, 0].tolist(),
            "y": points[:, 1].tolist(),
            "colour": [colours.get(name, _UNLABELLED) for name in names],
            "name": list(names),
            "left": [round(scale * left) for left in sheet.lefts],
            "top": [round(scale * top) for top in sheet.tops],
        }
    )
    plot = figure(
        height=520,
        sizing_mode="stretch_width",
        tools="pan,wheel_zoom,box_zoom,reset",
        toolbar_location="above",
        match_aspect=True,
    )
    plot.toolbar.logo = None
    plot.axis.visible = False
    plot.grid.visible = False
    for part in ("background_fill", "border_fill", "outline_line"):
        setattr(plot, f"{part}_color", None)  # the page's, light or dark
    dots = plot.scatter(
        "x", "y", color="colour", size=7, fill_alpha=0.75, line_alpha=0.0, source=source
    )
    # The numbers are ours; Bokeh escapes the name.
    plot.add_tools(
        HoverTool(
            renderers=[dots],
            tooltips=f'<div style="width:{_HOVER_SIDE}px;height:{_HOVER_SIDE}px;'
            f"background:var({style}) -@{{left}}px -@{{top}}px / "
            f'{round(scale * sheet.width)}px auto"></div><div>@name</div>',
        )
    )
    script, div = components(plot)
    return EmbeddingMap(script, div, method, colours)
