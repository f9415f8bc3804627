"""How plots look: colours that colour-blind people can tell apart, quiet axes, names beside lines and not in legends.

The one place where matplotlib is imported. It draws on its own canvas: no window, and nobody's settings are changed.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from msa_plugin.bench.report_rows import BASE
from msa_plugin.bench.report_tables import clean
from msa_plugin.errors import MissingExtraError

# Okabe and Ito's palette without yellow, which is too light for lines on white; grey for what comes after.
BLUE, INK, MUTED, RULE = "#0072B2", "#222222", "#6b6b6b", "#dddddd"
COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#44337a", "#8a5a2b", "#7a7a7a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_DPI = 160
_SETTINGS: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a name is a dollar
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw within it. Raises MissingExtraError when matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError('plots need matplotlib: pip install "msa-plugin[bench]"') from error
    with matplotlib.rc_context(dict(_SETTINGS)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names may be in any script
        yield


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, list[Any]]:
    """A figure of inches and its axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def png(figure: Any) -> bytes:
    """The figure as a file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def short(name: str, limit: int = 26) -> str:
    """A name for an axis: printable, and its middle left out where it is long."""
    shown = clean(name)
    keep = (limit - 1) // 2
    return shown if len(shown) <= limit else f"{shown[:keep]}…{shown[-keep:]}"


def colours(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name: blue for the base, the others in order."""
    rest = [n for n in names if n != BASE]
    known = {n: (COLOURS[i % len(COLOURS)], MARKERS[(i + 1) % len(MARKERS)]) for i, n in enumerate(rest)}
    return {BASE: (BLUE, MARKERS[0]), **known}


def quiet(axes: Any, grid: str) -> None:
    """Only a light grid along one axis, and the line that bars or dots stand on."""
    axes.grid(True, axis=grid)
    axes.spines["left" if grid == "x" else "bottom"].set_visible(grid == "y")
    if grid == "y":
        axes.spines["left"].set_visible(False)
    else:
        axes.spines["bottom"].set_visible(False)


class End(NamedTuple):
    """Where a line ends, and what is written there."""

    name: str
    x: float
    y: float
    colour: str


def beside(axes: Any, ends: Sequence[End], x: float) -> None:
    """Names of lines in their colours to the right of `x`, moved apart where they would overlap."""
    from matplotlib.transforms import offset_copy

    height = axes.get_window_extent().height * 72 / axes.figure.dpi
    aside = offset_copy(axes.get_xaxis_transform(), fig=axes.figure, x=9, units="points")
    to_axes = axes.transData + axes.transAxes.inverted()
    places = [float(to_axes.transform((e.x, e.y))[1]) * height for e in ends]
    for end, place, moved in zip(ends, places, apart(places, 11.5, height), strict=True):
        far = end.x != x
        led = far or abs(moved - place) > 2
        line = {
            "arrowstyle": "-",
            "color": end.colour,
            "lw": 0.6,
            "ls": ":" if far else "-",
            "shrinkA": 0,
            "shrinkB": 3,
        }
        axes.annotate(
            end.name,
            (end.x, end.y),
            xytext=(x, moved / height),
            textcoords=aside,
            color=end.colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops=line if led else None,
        )


def apart(places: Sequence[float], gap: float, ceiling: float) -> list[float]:
    """Places at least `gap` from each other, each as little moved as need be, below `ceiling` where they fit."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for lower, upper in pairwise(order):
        moved[upper] = max(moved[upper], moved[lower] + gap)
    for i in reversed(order):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    return moved


def key(figure: Any, colours_of: Mapping[str, str]) -> None:
    """One line above the plot that says what colours mean, for parts too small to be named in place."""
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=short(name, 16)) for name, colour in colours_of.items()]
    figure.legend(handles=patches, loc="outside upper left", ncols=6, frameon=False, handlelength=0.9, fontsize=8.5)
