"""The curves of a training: `curve.jsonl`, a line a step, and `curve.png`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msa_plugin.data import jsonl
from msa_plugin.measuring.plot_style import BLUE, colours, panels, png, quiet, style

HELD_OUT = "held_out"  # of a line: figures by name
_SMOOTH = 0.02  # of the steps: how many a point is the mean of


class Curve:
    """Lines by step; what a killed process wrote after its last checkpoint is written again by the next one."""

    def __init__(self, path: Path, step: int) -> None:
        """Of the file at `path`, to go on after `step`. Raises ConfigError for a damaged file."""
        self.path = path
        self.lines = [line for line in jsonl.read(path) if 0 < step >= line.get("step", 0)]
        if path.exists():
            jsonl.write_atomic(path, jsonl.text_of(path, self.lines))

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line. Raises OSError."""
        jsonl.append(self.path, [line])
        self.lines.append(dict(line))

    def draw(self, path: Path) -> None:
        """Loss and its parts, learning rate, held-out figures. Raises MissingExtraError without matplotlib."""
        path.write_bytes(picture(self.lines))


def picture(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG with a panel for each loss, the gradient's norm, the learning rate and each held-out figure."""
    drawn = [(name, _series(lines, name)) for name in ("loss", "norm", "lr")]
    for group in ("parts", HELD_OUT):
        names = dict.fromkeys(name for line in lines for name in line.get(group, {}))
        drawn += [(name, _series([{**line.get(group, {}), "step": line["step"]} for line in lines], name))
                   for name in names]  # fmt: skip
    drawn = [p for p in drawn if p[1]]
    with style():
        figure, axes = panels(len(drawn), 3, 3.2, 2.2)
        paint = colours([name for name, _ in drawn])
        for ax, (name, points) in zip(axes, drawn, strict=True):
            _draw(ax, name, points, paint.get(name, (BLUE, ""))[0])
        return png(figure)


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def _draw(ax: Any, name: str, points: Sequence[tuple[int, float]], colour: str) -> None:
    steps, values = [p[0] for p in points], [p[1] for p in points]
    window = max(int(len(points) * _SMOOTH), 1)
    means = [sum(values[max(i - window, 0) : i + 1]) / len(values[max(i - window, 0) : i + 1])
             for i in range(len(values))]  # fmt: skip
    ax.set_title(name)
    quiet(ax, "y")
    ax.plot(steps, values, color=colour, lw=0.6, alpha=0.35)
    ax.plot(steps, means, color=colour, lw=1.6, marker="o" if len(points) < 12 else None, ms=3)
    ax.set_xlabel("step")
