"""Plots of a run folder's rows, as PNG files in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msa_plugin.bench import report_growth as growth
from msa_plugin.bench import report_quality as quality
from msa_plugin.bench.base import ResultRow
from msa_plugin.bench.plot_style import (
    BLUE,
    COLOURS,
    INK,
    MUTED,
    End,
    beside,
    canvas,
    colours,
    key,
    png,
    quiet,
    short,
    style,
)
from msa_plugin.bench.report_rows import BASE, Saved, distinct, plain, spelled, systems, timed
from msa_plugin.bench.report_tables import Figure, clean, joined, tokens

Dot = tuple[str, float, float | None, float | None]  # label, value, interval
_STAGE_COLOURS = dict(zip(growth.STAGES[:-1], ("#E69F00", BLUE, "#009E73", "#CC79A7", "#56B4E9"), strict=True))
_CELLS_WITH_NUMBERS = 80
_GROWING = ("R@10", "nDCG@10", "EM", "F1", *growth.SHOWN)  # the panels of degradation, if there are more than six
_WHISKERS = "Whiskers: 95 % intervals, of times the 5th to 95th percentile."


def figures(saved: Saved) -> dict[str, list[Figure]]:
    """Figures by part, only of parts that have rows. Raises MissingExtraError without matplotlib."""
    with style():
        makers = {"retrieval": _retrieval, "qa": _qa, "scale": _scale, "needle": _needle, "latency": _latency}
        return {part: make(saved) for part, make in makers.items()}


# Dots: retrieval and answers


def _retrieval(saved: Saved) -> list[Figure]:
    rows = plain(saved.part("retrieval"))
    metric = next((m for m in quality.RETRIEVAL if any(r.metric == m for r in rows)), None)
    rows = [r for r in rows if r.metric == metric]
    if not rows or metric is None:
        return []
    names = systems(rows)
    panels = []
    for dataset in quality.datasets_of(rows):
        at = {r.system: r for r in rows if r.dataset == dataset}
        panels.append((dataset, [_dot(n, at.get(n)) for n in names]))
    caption = f"{metric} by data set with 95 % intervals; the line is at the first system's value."
    return [_dots("retrieval.png", panels, metric, caption)]


def _qa(saved: Saved) -> list[Figure]:
    rows = plain(saved.part("qa"), "passages")
    panels = []
    for metric in [m for m in quality.QA if any(r.metric == m for r in rows)]:
        some = [r for r in rows if r.metric == metric]
        datasets = quality.datasets_of(some)
        at = {(r.dataset, quality.series_of(r)): r for r in some}
        dots: list[Dot] = []
        for one in quality.series(some):
            row = at.get((datasets[0], one)) if len(datasets) == 1 else None
            value = quality.average(at, datasets, one)
            text = f"{short(one[0], 22)}  {quality.read_label(one[1])}".strip()
            dots.append(_dot(text, row) if row else (text, float("nan") if value is None else value, None, None))
        where = datasets[0] if len(datasets) == 1 else f"average of {len(datasets)} data sets"
        panels.append((f"{metric}, {clean(where, 40)}", dots))
    if not panels:
        return []
    caption = "Answers by system and passages read; the line is at the first system's choice."
    return [_dots("answers.png", panels, "", caption)]


def _dot(name: str, row: ResultRow | None) -> Dot:
    return (name, float("nan"), None, None) if row is None else (name, row.value, row.low, row.high)


def _dots(name: str, panels: Sequence[tuple[str, list[Dot]]], unit: str, caption: str) -> Figure:
    """Panels of labelled dots, on a common scale where they share a unit; the base stands out."""
    across = 2 if len(panels) in (2, 4) else min(3, len(panels))
    down = -(-len(panels) // across)
    lines = max(len(dots) for _, dots in panels)
    same = len({tuple(d[0] for d in dots) for _, dots in panels}) == 1
    figure, axes = canvas(9.2 if across > 1 else 6.0, 0.35 + down * (0.62 + 0.21 * lines), down, across, sharey=same)
    figure.get_layout_engine().set(wspace=0.05, hspace=0.06)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    furthest = [_furthest(dots) for _, dots in panels]
    for i, (ax, (title, dots)) in enumerate(zip(axes, panels, strict=False)):
        ax.set_title(short(title, 36))
        quiet(ax, "x")
        _draw_dots(ax, dots)
        ax.set_xlim(0, 1.06 * (max(furthest) if unit else furthest[i]))
        ax.locator_params(axis="x", nbins=5)
        if unit and i + across >= len(panels):
            ax.set_xlabel(unit)
        elif unit:
            ax.tick_params(labelbottom=False)
    said = "; ".join(f"{clean(t, 40)}: {_spoken(dots)}" for t, dots in panels[:4])
    return Figure(name, png(figure), f"Dot plot. {said}.", caption)


def _draw_dots(ax: Any, dots: Sequence[Dot]) -> None:
    if dots[0][0].startswith(BASE):
        ax.axvline(dots[0][1], color=BLUE, lw=0.8, alpha=0.45)
    for y, (label, value, low, high) in enumerate(dots):
        colour = BLUE if label.startswith(BASE) else "#555555"
        if low is not None and high is not None:
            ax.plot([low, high], [y, y], color=colour, lw=1.6, alpha=0.45, solid_capstyle="round")
        ax.plot([value], [y], "o", color=colour, ms=5, clip_on=False)
    ax.set_yticks(range(len(dots)), [short(d[0]) for d in dots], color=INK)
    ax.set_ylim(len(dots) - 0.4, -0.6)


def _furthest(dots: Sequence[Dot]) -> float:
    """The largest number to be drawn; 1 where there is none above 0."""
    ends = [v for _, value, _, high in dots for v in (value, high) if v is not None and v == v]
    return max([v for v in ends if v > 0], default=1.0)


def _spoken(dots: Sequence[Dot]) -> str:
    return ", ".join(f"{clean(n, 40)} {v:.3f}" for n, v, _, _ in dots[:6] if v == v)


# Lines: degradation and whole questions


def _scale(saved: Saved) -> list[Figure]:
    rows, found = growth.sized(saved), []
    for number, dataset in enumerate(quality.datasets_of(rows), start=1):
        some = [r for r in rows if r.dataset == dataset]
        metrics = [
            m for m in dict.fromkeys([*_GROWING, *(r.metric for r in some)]) if not timed(m) or m in growth.SHOWN
        ]
        panels = [(spelled(m), [r for r in some if r.metric == m]) for m in metrics]
        panels = sorted([p for p in panels if p[1]][:6], key=lambda p: timed(p[0]))
        caption = f"{dataset}: quality and latency as the memory grows. {_WHISKERS}"
        found.append(_lines(f"degradation-{number}.png", panels, caption, systems(saved.rows)))
    return found


def _totals(saved: Saved) -> list[Figure]:
    rows = [r for r in saved.part("latency") if growth.stage(r) == "total" and growth.hop(r) is None]
    medians = [r for r in rows if r.metric == growth.P50 and growth.memory_tokens(r) is not None]
    panels = [(f"median seconds, {d}", [r for r in medians if r.dataset == d]) for d in quality.datasets_of(medians)]
    panels = [(title, some) for title, some in panels if len(distinct(some, growth.memory_tokens)) > 1]
    caption = "Median latency of a whole question as the memory grows; whiskers: 5th to 95th percentile."
    return [_lines("latency-total.png", panels, caption, systems(saved.rows))] if panels else []


def _lines(name: str, panels: Sequence[tuple[str, list[ResultRow]]], caption: str, every: Sequence[str]) -> Figure:
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure, axes = canvas(9.2 if across > 1 else 6.4, 3.1 * down, down, across)
    figure.get_layout_engine().set(wspace=0.06)
    paint = colours(every)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    ends = [_panel(ax, title, rows, paint) for ax, (title, rows) in zip(axes, panels, strict=False)]
    figure.draw_without_rendering()  # settles the scales that the names are placed by
    for ax, (_, rows), labelled in zip(axes, panels, ends, strict=False):
        beside(ax, labelled, max(map(growth.memory_tokens, rows)))
    said = "; ".join(f"{clean(t, 40)} of {joined(clean(n, 40) for n in growth.labels(rows)[:6])}" for t, rows in panels)
    return Figure(name, png(figure), f"Line plots against tokens in memory: {said}.", caption)


def _panel(ax: Any, title: str, rows: list[ResultRow], paint: dict[str, tuple[str, str]]) -> list[End]:
    """Draw the lines of a metric; the names to write beside them."""
    sizes = distinct(rows, growth.memory_tokens)
    ends = []
    names, span = growth.labels(rows), sizes[-1] / sizes[0]
    for i, name in enumerate(names):
        own = sorted((r for r in rows if growth.label(r) == name), key=growth.memory_tokens)
        colour, marker = paint[own[0].system]
        main = own[0].system == BASE
        xs, ys = [growth.memory_tokens(r) for r in own], [r.value for r in own]
        ax.plot(xs, ys, color=colour, marker=marker, ms=4, lw=2.2 if main else 1.4, zorder=3 if main else 2)
        aside = max(span, 2) ** (0.008 * (i - (len(names) - 1) / 2))  # whiskers beside each other
        for x, row in zip(xs, own, strict=True):
            if row.low is not None and row.high is not None:
                ax.plot([x * aside] * 2, [row.low, row.high], color=colour, lw=0.9, alpha=0.4)
        stopped = "" if xs[-1] == sizes[-1] else f" (to {tokens(xs[-1])})"
        ends.append(End(short(name) + stopped, xs[-1], ys[-1], colour))
    _scales(ax, title, sizes, [r.value for r in rows])
    room = max(len(e.name) for e in ends)
    ax.set_xlim(sizes[0] / max(span, 1.5) ** 0.04, sizes[-1] * max(span, 1.5) ** (0.05 + 0.029 * room))
    return ends


def _scales(ax: Any, title: str, sizes: Sequence[float], values: Sequence[float]) -> None:
    """Sizes on a logarithmic axis; so are times that differ much, all else starts at 0."""
    quiet(ax, "y")
    ax.set_xscale("log")
    ax.set_xticks(sizes, [tokens(s) for s in sizes])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("tokens in memory")
    unit = "seconds" if "seconds" in title else ""
    if timed(title) and 0 < 10 * min(values) < max(values):
        ax.set_yscale("log")
        ax.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
        ax.yaxis.set_minor_formatter(lambda v, _: "")
        unit += ", logarithmic"
    else:
        ax.set_ylim(bottom=0)
    ax.set_ylabel(unit)
    ax.set_title(short(title, 44))


# Heat maps


def _needle(saved: Saved) -> list[Figure]:
    rows = [r for r in saved.part("needle") if growth.length(r) is not None and growth.depth(r) is not None]
    metrics = [m for m in growth.NEEDLE if any(r.metric == m for r in rows)]
    return [_heat_maps([r for r in rows if r.metric == metric], metric) for metric in metrics]


def _heat_maps(rows: list[ResultRow], metric: str) -> Figure:
    names = systems(rows)
    lengths, depths = distinct(rows, growth.length), distinct(rows, growth.depth)
    across = min(4, len(names))
    down = -(-len(names) // across)
    height = max(2.4, down * (0.9 + 0.27 * len(depths)))  # the colour bar's label needs that much
    figure, axes = canvas(9.2, height, down, across, sharex=True, sharey=True)
    image = None
    for i, (ax, name) in enumerate(zip(axes, names, strict=False)):
        values = growth.heat(rows, name)
        grid = [[values.get((n, d), float("nan")) for n in lengths] for d in depths]
        image = ax.imshow(grid, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        if len(lengths) * len(depths) <= _CELLS_WITH_NUMBERS:
            _numbers(ax, grid)
        for spine in ax.spines.values():
            spine.set_visible(False)
        ax.set_title(short(name), color=BLUE if name.startswith(BASE) else INK)
        ax.set_xticks(range(len(lengths)), [tokens(n) for n in lengths])
        ax.set_yticks(range(len(depths)), [f"{100 * d:.0f} %" for d in depths])
        if i % across == 0:
            ax.set_ylabel("depth of the needle")
        if i + across >= len(names):
            ax.set_xlabel("tokens in the haystack")
            ax.tick_params(labelbottom=True)
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.015, aspect=30)
        bar.set_label("share of needles found" if metric == "recall" else "share of values in the answer")
        bar.outline.set_visible(False)
    said = ", ".join(f"{clean(n, 40)} {growth.mean(r for r in rows if r.system == n):.2f}" for n in names[:8])
    caption = f"Needles, {metric}: mean over tasks at each length and depth."
    return Figure(f"needle-{metric}.png", png(figure), f"Heat maps, {metric}; means: {said}.", caption)


def _numbers(ax: Any, grid: Sequence[Sequence[float]]) -> None:
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            if value == value:
                shown = f"{value:.2f}".removeprefix("0") if value < 1 else "1"
                ax.text(x, y, shown, ha="center", va="center", size=7, color=INK if value > 0.55 else "white")


# Stages


def _latency(saved: Saved) -> list[Figure]:
    rows = [r for r in saved.part("latency") if r.metric == growth.P50 and growth.stage(r) not in (None, "total")]
    found = []
    for number, dataset in enumerate(quality.datasets_of(rows), start=1):
        some = [r for r in rows if r.dataset == dataset]
        sizes = distinct(some, growth.memory_tokens) or [None]
        shown = sizes if len(sizes) < 3 else [sizes[0], sizes[-1]]
        panels = [(s, [r for r in some if growth.memory_tokens(r) == s]) for s in shown]
        found.append(_stages(f"latency-stages-{number}.png", panels, dataset))
    return [*found, *_totals(saved)]


def _stages(name: str, panels: Sequence[tuple[Any, list[ResultRow]]], dataset: str) -> Figure:
    """Bars of stages, one after another and hop after hop, for each system."""
    bars = max(len(growth.labels(rows)) for _, rows in panels)
    figure, axes = canvas(9.2, 0.55 + len(panels) * (0.75 + 0.3 * bars), len(panels), 1, sharex=True)
    stages: dict[str, str] = {}
    for ax, (size, rows) in zip(axes, panels, strict=True):
        labels = growth.labels(rows)
        for y, label in enumerate(labels):
            _bar(ax, y, [r for r in rows if growth.label(r) == label], stages)
        ax.set_yticks(range(len(labels)), [short(n) for n in labels], color=INK)
        ax.set_ylim(len(labels) - 0.4, -0.6)
        ax.set_title(f"{tokens(size)} tokens in memory" if size is not None else clean(dataset, 40))
        quiet(ax, "x")
    axes[-1].set_xlabel("seconds: medians of the stages, hop after hop (their sum is not the median of the whole)")
    axes[-1].set_xlim(right=1.08 * axes[-1].get_xlim()[1])
    key(figure, stages)
    alt = f"Bars of seconds by stage and hop: {joined(clean(n, 40) for n in growth.labels(panels[-1][1])[:8])}."
    caption = f"{dataset}: where the time goes, at the smallest and the largest memory. White gaps part the hops."
    return Figure(name, png(figure), alt, caption)


def _bar(ax: Any, y: int, rows: list[ResultRow], stages: dict[str, str]) -> None:
    left, before = 0.0, None
    for row in sorted(rows, key=growth.place):
        stage, hop = str(growth.stage(row)), growth.hop(row)
        spare = COLOURS[(len(stages) + 3) % len(COLOURS)]
        colour = stages.setdefault(stage, _STAGE_COLOURS.get(stage, spare))
        ax.barh(y, row.value, left=left, height=0.62, color=colour, lw=0)
        if before is not None and hop != before:
            ax.plot([left, left], [y - 0.36, y + 0.36], color="white", lw=2.5)
        left, before = left + row.value, hop
    ax.annotate(f"{left:.3g} s", (left, y), xytext=(4, 0), textcoords="offset points", va="center", size=8, color=MUTED)
