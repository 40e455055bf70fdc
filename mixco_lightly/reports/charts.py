"""Line charts as SVG, whose text and axes have the colour of the page's text."""

from __future__ import annotations

import hashlib
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stands for the colour of the page's text until the SVG is there.
_INK = "#0a0b0c"
# Colours that are told apart on white and on near black, by colour-blind readers too.
COLOURS = ["#2a7fd4", "#e0731d", "#1f9e77", "#c2479b", "#8f7ee6", "#a8892c"]
# Of a forest plot: letters in a line of a label, and rows from which it has two scales.
_LABEL_WIDTH = 30
_TALL = 25
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "legend.framealpha": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor"], _INK),
    **dict.fromkeys(["xtick.color", "ytick.color"], _INK),
}


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: Its name in the legend.
        xs: Positions.
        ys: Values.
        spread: Half the height of a band around the values. Default: no band.
        colour: Index of its colour. Default: its place among the lines.
        is_dashed: Whether it is dashed.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    spread: Sequence[float] | None = None
    colour: int | None = None
    is_dashed: bool = False


class Chart(NamedTuple):
    """A chart of a page.

    Attributes:
        title: Its heading.
        svg: The drawing.
        description: What it shows, for readers who do not see it.
    """

    title: str
    svg: str
    description: str


def draw_lines(
    title: str, xlabel: str, ylabel: str, lines: Sequence[Line], has_diagonal: bool = False
) -> Chart:
    """Draws lines over one axis.

    Args:
        title: The chart's heading, which no other chart of the page has.
        xlabel: What is on the horizontal axis.
        ylabel: What is on the vertical axis.
        lines: The lines.
        has_diagonal: Whether to draw the line of equal x and y too.
    """

    def paint(axes: Axes) -> None:
        if has_diagonal:
            axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle=":", label="diagonal")
        for index, line in enumerate(lines):
            colour = COLOURS[(index if line.colour is None else line.colour) % len(COLOURS)]
            axes.plot(
                line.xs,
                line.ys,
                color=colour,
                linestyle="--" if line.is_dashed else "-",
                # A line of a few points is hard to see.
                marker="." if len(line.xs) < 20 else "",
                label=_escape(line.name),
            )
            if line.spread is not None:
                low, high = (
                    [y + sign * half for y, half in zip(line.ys, line.spread, strict=True)]
                    for sign in (-1, 1)
                )
                axes.fill_between(line.xs, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.3)
        if len(lines) > 1 or has_diagonal:
            axes.legend(fontsize=9)

    ends = [
        f"{line.name} from {line.ys[0]:.4g} to {line.ys[-1]:.4g}" for line in lines if len(line.ys)
    ]
    return Chart(
        title, draw(paint, (4.8, 3.2), title), f"{title} over {xlabel}: {'; '.join(ends)}."
    )


class Interval(NamedTuple):
    """A row of a forest plot.

    Attributes:
        label: What it is.
        mean: The difference.
        half_width: Half the width of its interval; NaN for none.
    """

    label: str
    mean: float
    half_width: float


def draw_forest(title: str, xlabel: str, rows: Sequence[Interval]) -> Chart:
    """Draws differences with their intervals, one below the other, beside the line of zero.

    Those whose interval contains zero, or that have none, are grey.
    """

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=_INK, linewidth=1)
        for y, row in enumerate(rows):
            is_clear = abs(row.mean) > row.half_width  # False for NaN
            colour = (COLOURS[0] if row.mean > 0 else COLOURS[1]) if is_clear else "#8a8f96"
            error = None if math.isnan(row.half_width) else row.half_width
            axes.errorbar(row.mean, y, xerr=error, fmt="o", color=colour, capsize=2)
        axes.set(
            xlabel=xlabel,
            ylim=(len(rows) - 0.5, -0.5),
            yticks=range(len(rows)),
            yticklabels=labels,
        )
        axes.tick_params(labeltop=len(rows) > _TALL)
        axes.grid(axis="x", alpha=0.3)

    labels = [textwrap.fill(_escape(row.label), _LABEL_WIDTH) for row in rows]
    lines = max(label.count("\n") + 1 for label in labels)
    height = 0.9 + (0.12 + 0.16 * lines) * len(rows)
    texts = [f"{row.label} {row.mean:+.2f}" for row in rows]
    return Chart(title, draw(paint, (6.5, height), title), f"{title}: {'; '.join(texts)}.")


def draw(paint: Callable[[Axes], None], size: tuple[float, float], name: str) -> str:
    """Draws one pair of axes as SVG, to be put into a page once.

    Args:
        paint: Draws on the axes.
        size: Width and height in inches.
        name: A name that no other drawing of the page has.
    """
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "report"}):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.subplots())
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The page's style says how wide it is.
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace(_INK, "currentColor")
    return _prefix_ids(svg, name)


def _escape(text: str) -> str:
    """Returns a text in which matplotlib finds no mathematics, and which a legend does not hide."""
    return text.replace("$", r"\$").lstrip("_")


def _prefix_ids(svg: str, name: str) -> str:
    """Prefixes the ids of a drawing, which are otherwise the same in each drawing of a page."""
    prefix = f"c{hashlib.sha256(name.encode()).hexdigest()[:8]}-"
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
