"""Plots of a run folder's rows, as PNG files in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msa_plugin.bench.report_parts import PARTS, STAGES, Grid, Line, means
from msa_plugin.bench.report_rows import BASE, Saved, by_metric, datasets, distinct, setting, spelled, timed
from msa_plugin.bench.report_tables import Figure, clean
from msa_plugin.bench.result import ResultRow
from msa_plugin.bench.units import tokens
from msa_plugin.measuring.plot_style import (
    BLUE,
    COLOURS,
    INK,
    MUTED,
    colours,
    panels,
    png,
    quiet,
    style,
)

_STAGE_COLOURS = dict(zip(STAGES[:-1], ("#E69F00", BLUE, "#009E73", "#CC79A7", "#56B4E9"), strict=True))
_MOST = 6  # panels of degradation
_WHISKERS = "Whiskers: 95 % intervals, of times the 5th to 95th percentile."


def figures(saved: Saved) -> dict[str, list[Figure]]:
    """Figures by part, only of parts that have rows. Raises MissingExtraError without matplotlib."""
    with style():
        makers = {"retrieval": _retrieval, "qa": _qa, "scale": _scale, "needle": _needle, "latency": _latency}
        return {part: make(saved) for part, make in makers.items()}


def _shown(rows: Iterable[ResultRow], part: str) -> dict[str, list[ResultRow]]:
    """The rows of each metric that is not folded."""
    found = by_metric(rows, PARTS[part].shown)
    return {metric: some for metric, some in found.items() if metric in PARTS[part].shown}


# Dots: retrieval and answers


def _retrieval(saved: Saved) -> list[Figure]:
    for metric, rows in _shown((r for r in saved.part("retrieval") if not r.settings), "retrieval").items():
        grid = Grid(rows)
        drawn = [(place[0], grid.columns, line) for place, line in grid.lines.items()]
        caption = f"{metric} by data set with 95 % intervals; the line is at the first system's value."
        return [_dots("retrieval.png", drawn, caption, metric)]
    return []


def _qa(saved: Saved) -> list[Figure]:
    drawn, where = [], ""
    for metric, rows in _shown((r for r in saved.part("qa") if {*r.settings} <= {"passages"}), "qa").items():
        grid, names = Grid(rows), datasets(rows)
        line = means(grid.lines.values()) if len(names) > 1 else next(iter(grid.lines.values()))
        where = clean(names[0], 40) if len(names) == 1 else f"average of {len(names)} data sets"
        drawn.append((metric, grid.columns, line))
    caption = "Answers by system and passages read; the line is at the first system's choice."
    return [_dots("answers.png", drawn, caption, where)] if drawn else []


def _dots(name: str, drawn: Sequence[tuple[str, list[str], Line]], caption: str, label: str) -> Figure:
    """Panels of dots with whiskers on one scale, the base in blue; names stand once where they are the same."""
    same = all(columns == drawn[0][1] for _, columns, _ in drawn)
    most = max(len(columns) for _, columns, _ in drawn)
    across = 2 if len(drawn) in (2, 4) else 3
    figure, axes = panels(
        len(drawn), across, 9.2 / min(across, len(drawn)), 0.7 + 0.21 * most, sharey=same, sharex=True
    )
    for ax, (title, columns, line) in zip(axes, drawn, strict=True):
        quiet(ax, "x")
        ax.set_title(short(title, 36))
        ax.set_yticks(range(len(columns)), [short(c) for c in columns], color=INK)
        ax.set_ylim(len(columns) - 0.4, -0.6)
        if columns[0].startswith(BASE) and columns[0] in line:
            ax.axvline(line[columns[0]].value, color=BLUE, lw=0.8, alpha=0.45)
        for y, row in ((y, line[c]) for y, c in enumerate(columns) if c in line):
            colour = BLUE if row.system.startswith(BASE) else "#555555"
            ax.plot(_bounds(row), [y, y], color=colour, lw=1.6, alpha=0.45)
            ax.plot([row.value], [y], "o", color=colour, ms=5, clip_on=False)
    for ax in axes:  # once all is drawn: panels that share an axis would keep the first one's right end
        ax.set_xlim(left=0)
    figure.supxlabel(label, size=8.5, color=MUTED)
    return Figure(name, png(figure), caption)


def _bounds(row: ResultRow) -> list[float]:
    return [row.value if row.low is None else row.low, row.value if row.high is None else row.high]


# Lines: degradation and whole questions


def _scale(saved: Saved) -> list[Figure]:
    rows, found = _sized(saved.part("scale")), []
    for number, dataset in enumerate(datasets(rows), start=1):
        shown = _shown((r for r in rows if r.dataset == dataset), "scale")
        caption = f"{dataset}: quality and latency as the memory grows. {_WHISKERS}"
        drawn = {spelled(metric): some for metric, some in list(shown.items())[-_MOST:]}
        found += [_lines(f"degradation-{number}.png", drawn, caption)] if drawn else []
    return found


def _sized(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """Rows at a size that can stand on an axis."""
    return [r for r in rows if isinstance(size := setting(r, "memory_tokens"), (int, float)) and size > 0]


def _totals(rows: Iterable[ResultRow]) -> list[Figure]:
    whole = _sized(r for r in rows if (setting(r, "stage"), setting(r, "hop")) == ("total", None))
    each = {d: [r for r in whole if r.dataset == d] for d in datasets(whole)}
    drawn = {f"median seconds, {d}": some for d, some in each.items() if len(distinct(some, "memory_tokens")) > 1}
    caption = "Median latency of a whole question as the memory grows; whiskers: 5th to 95th percentile."
    return [_lines("latency-total.png", drawn, caption)] if drawn else []


def _lines(name: str, drawn: Mapping[str, list[ResultRow]], caption: str) -> Figure:
    """Panels of lines against tokens in memory, by title."""
    figure, axes = panels(len(drawn), 2, 4.6 if len(drawn) > 1 else 6.4, 3.1)
    grids = {title: Grid(rows) for title, rows in drawn.items()}
    names = list(dict.fromkeys(c for grid in grids.values() for c in grid.columns))
    paint, handles = colours(names, BASE), {}
    for ax, (title, grid) in zip(axes, grids.items(), strict=True):
        for column in grid.columns:
            rows = [line[column] for line in grid.lines.values() if column in line]
            handles[column] = _line(ax, rows, *paint[column])
        _scales(ax, title, grid.rows)
    legend(figure, {name: handles[name] for name in names})
    return Figure(name, png(figure), caption)


def _line(ax: Any, rows: Sequence[ResultRow], colour: str, marker: str) -> Any:
    sizes, main = [setting(r, "memory_tokens") for r in rows], rows[0].system == BASE
    for size, row in zip(sizes, rows, strict=True):
        ax.plot([size, size], _bounds(row), color=colour, lw=0.9, alpha=0.4)
    width = 2.2 if main else 1.4
    return ax.plot(
        sizes, [r.value for r in rows], color=colour, marker=marker, ms=4, lw=width, zorder=3 if main else 2
    )[0]


def _scales(ax: Any, title: str, rows: Sequence[ResultRow]) -> None:
    """Sizes on a logarithmic axis; so are times that differ much, all else starts at 0."""
    sizes, values = distinct(rows, "memory_tokens"), [r.value for r in rows]
    quiet(ax, "y")
    ax.set_title(short(title, 44))
    ax.set_xscale("log")
    ax.set_xticks(sizes, [tokens(s) for s in sizes])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("tokens in memory")
    unit = "seconds" if timed(title) else ""
    if unit and 0 < 10 * min(values) < max(values):
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
        unit += ", logarithmic"
    else:
        ax.set_ylim(bottom=0)
    ax.set_ylabel(unit)


# Heat maps


def _needle(saved: Saved) -> list[Figure]:
    rows = [r for r in saved.part("needle") if {"length", "depth"} <= {*r.settings}]
    return [_heat_maps(some, metric) for metric, some in _shown(rows, "needle").items()]


def _heat_maps(rows: list[ResultRow], metric: str) -> Figure:
    """Means over tasks by depth and length, a panel a system."""
    lengths, depths, grid = distinct(rows, "length"), distinct(rows, "depth"), Grid(rows).by("length", "depth")
    at = {place[1:]: line for place, line in grid.lines.items()}
    count = len(grid.columns)
    height = max(2.4, 0.9 + 0.27 * len(depths))  # the colour bar's label needs that much
    figure, axes = panels(count, 4, 9.2 / min(4, count), height, sharex=True, sharey=True)
    for ax, name in zip(axes, grid.columns, strict=True):
        values = [[_value(at.get((n, d), {}), name) for n in lengths] for d in depths]
        image = ax.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        ax.set_title(short(name), color=BLUE if name.startswith(BASE) else INK)
        ax.set_xticks(range(len(lengths)), [tokens(n) for n in lengths])
        ax.set_yticks(range(len(depths)), [f"{100 * d:.0f} %" for d in depths])
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                ax.text(x, y, f"{value:.2f}", ha="center", va="center", size=7, color=INK if value > 0.55 else "white")
    figure.supxlabel("tokens in the haystack", size=8.5, color=MUTED)
    figure.supylabel("depth of the needle", size=8.5, color=MUTED)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.015, aspect=30)
    bar.set_label("share of needles found" if metric == "recall" else "share of values in the answer")
    caption = f"Needles, {metric}: mean over tasks at each length and depth."
    return Figure(f"needle-{metric}.png", png(figure), caption)


def _value(line: Line, column: str) -> float:
    return line[column].value if column in line else math.nan


# Stages


def _latency(saved: Saved) -> list[Figure]:
    rows = [r for r in saved.part("latency") if r.metric == "seconds_p50" and "stage" in r.settings]
    found = []
    for number, dataset in enumerate(datasets(rows), start=1):
        some = [r for r in rows if r.dataset == dataset and setting(r, "stage") != "total"]
        sizes = distinct(some, "memory_tokens") or [None]
        drawn = {s: [r for r in some if setting(r, "memory_tokens") == s] for s in (sizes[0], sizes[-1])}
        found.append(_stages(f"latency-stages-{number}.png", drawn, dataset))
    return [*found, *_totals(rows)]


def _stages(name: str, drawn: Mapping[Any, list[ResultRow]], dataset: str) -> Figure:
    """Bars of stages, one after another and hop after hop, for each system at each size."""
    from matplotlib.patches import Patch

    grids = {size: Grid(rows) for size, rows in drawn.items()}
    most = max(len(grid.columns) for grid in grids.values())
    figure, axes = panels(len(grids), 1, 9.2, 0.8 + 0.3 * most, sharex=True)
    found = dict.fromkeys(str(setting(r, "stage")) for rows in drawn.values() for r in rows)
    others = [stage for stage in found if stage not in _STAGE_COLOURS]
    paint = {**_STAGE_COLOURS, **{stage: COLOURS[(i + 5) % len(COLOURS)] for i, stage in enumerate(others)}}
    for ax, (size, grid) in zip(axes, grids.items(), strict=True):
        quiet(ax, "x")
        ax.set_yticks(range(len(grid.columns)), [short(n) for n in grid.columns], color=INK)
        ax.set_ylim(len(grid.columns) - 0.4, -0.6)
        ax.set_title(f"{tokens(size)} tokens in memory" if size is not None else clean(dataset, 40))
        for y, column in enumerate(grid.columns):
            _bar(ax, y, [line[column] for line in grid.lines.values() if column in line], paint)
    axes[-1].set_xlabel("seconds: medians of the stages, hop after hop (their sum is not the median of the whole)")
    axes[-1].set_xlim(right=1.08 * axes[-1].get_xlim()[1])
    legend(figure, {stage: Patch(color=paint[stage]) for stage in found})
    caption = f"{dataset}: where the time goes, at the smallest and the largest memory. White gaps part the hops."
    return Figure(name, png(figure), caption)


def _bar(ax: Any, y: int, rows: Sequence[ResultRow], paint: Mapping[str, str]) -> None:
    left = 0.0
    for before, row in zip([None, *rows], rows, strict=False):
        ax.barh(y, row.value, left=left, height=0.62, color=paint[str(setting(row, "stage"))], lw=0)
        if before is not None and setting(before, "hop") != setting(row, "hop"):
            ax.plot([left, left], [y - 0.36, y + 0.36], color="white", lw=2.5)
        left += row.value
    ax.annotate(f"{left:.3g} s", (left, y), xytext=(4, 0), textcoords="offset points", va="center", size=8, color=MUTED)


def short(name: str, limit: int = 26) -> str:
    """A name for an axis: printable, and its middle left out where it is long."""
    shown = clean(name)
    keep = (limit - 1) // 2
    return shown if len(shown) <= limit else f"{shown[:keep]}…{shown[-keep:]}"


def legend(figure: Any, handles: Mapping[str, Any]) -> None:
    """What colours and markers mean, above the panels."""
    names = [f" {short(name)}" for name in handles]  # a name that begins with "_" would be left out
    figure.legend(list(handles.values()), names, loc="outside upper left", ncols=4, frameon=False)
