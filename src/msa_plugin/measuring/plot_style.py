"""How plots look: colours that colour-blind people can tell apart, quiet axes, names above the panels.

The one place where matplotlib is imported. It draws on its own canvas: no window, and nobody's settings are changed.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from msa_plugin.errors import optional_module

# Okabe and Ito's palette without yellow, which is too light for lines on white; grey for what comes after.
BLUE, INK, MUTED = "#0072B2", "#222222", "#6b6b6b"
COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#44337a", "#8a5a2b", "#7a7a7a")
_MARKERS = ("s", "^", "D", "v", "P", "X", "h")
_SETTINGS: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.parse_math": False,  # a "$" in a name is a dollar
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#dddddd",
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": "#ececec",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw within it. Raises MissingExtraError when matplotlib is not installed."""
    matplotlib = optional_module("matplotlib", 'plots need matplotlib: pip install "msa-plugin[bench]"')
    with matplotlib.rc_context(dict(_SETTINGS)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names may be in any script
        yield


def panels(count: int, across: int, width: float, height: float, **options: Any) -> tuple[Any, list[Any]]:
    """A figure and the axes of `count` panels, so many `across`, each of inches."""
    from matplotlib.figure import Figure

    across = max(min(across, count), 1)
    down = max(-(-count // across), 1)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False, **options).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def png(figure: Any) -> bytes:
    """The figure as a file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def colours(names: Sequence[str], base: str | None = None) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name, no pair twice: blue for the `base`, the others in order."""
    rest = [n for n in names if n != base]
    markers = [_MARKERS[(i + i // len(COLOURS)) % len(_MARKERS)] for i in range(len(rest))]
    first = {} if base is None else {base: (BLUE, "o")}
    return first | {n: (COLOURS[i % len(COLOURS)], markers[i]) for i, n in enumerate(rest)}


def quiet(axes: Any, grid: str) -> None:
    """Only a light grid along one axis, and the line that bars or dots stand on."""
    axes.grid(True, axis=grid)
    axes.spines["left"].set_visible(grid == "x")
    axes.spines["bottom"].set_visible(grid == "y")
