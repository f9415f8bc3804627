"""Numbers as people read them: three digits, and the unit that suits."""

from __future__ import annotations

from collections.abc import Sequence

DASH = "\u2013"  # stands for a number that is missing, and between two bounds
_TIMES = "\u00d7"
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_BYTES = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))


def number(value: float | None, metric: str = "") -> str:
    """A value with the unit that `metric` tells; a dash for none."""
    if value is None:
        return DASH
    if "bytes" in metric:
        return size(value)
    if "seconds" in metric:
        return duration(value)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def bounds(low: float | None, high: float | None, metric: str = "") -> str:
    """An interval, its unit told once; empty where there is none."""
    if low is None or high is None:
        return ""
    first, last = number(low, metric), number(high, metric)
    if first.partition(" ")[2] == last.partition(" ")[2]:
        first = first.partition(" ")[0]
    return f"{first}{DASH}{last}"


def duration(seconds: float) -> str:
    """Seconds."""
    return _scaled(seconds, _SECONDS)


def size(count: float) -> str:
    """Bytes."""
    return _scaled(count, _BYTES)


def tokens(count: float) -> str:
    """A number of tokens as people write memory sizes: 16K is 16,384 as well as 16,000."""
    for power, unit in ((2, "M"), (1, "K")):
        for base in (1000, 1024):
            if count >= base**power and count % base**power == 0:
                return f"{count / base**power:.0f}{unit}"
    for factor, unit in ((1e6, "M"), (1e3, "K")):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return f"{count:g}"


def times(value: float | None) -> str:
    """A ratio; a dash for none."""
    if value is None:
        return DASH
    return f"{value:.2f}{_TIMES}" if abs(value) < 100 else f"{value:,.0f}{_TIMES}"


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    factor, unit = next((one for one in units if abs(value) >= one[0]), units[-1])
    scaled = value / factor
    digits = 2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0
    return f"{scaled:,.{digits}f} {unit}"
