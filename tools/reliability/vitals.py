"""What a process holds on to, read from Linux's /proc, and whether it grows."""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# What a fitted line may rise over the samples judged before it counts as a leak, besides three times their noise:
# a share of the level, and a number of units. Python's and the C library's allocators never give everything back.
_ALLOWED = {"memory": (0.03, 4 << 20), "mapped_files": (0.0, 8), "disk": (0.05, 256 << 10)}
_WATCHED = ("memory", "open_files", "threads", "mapped_files", "temporary_files", "disk")


@dataclass(frozen=True)
class Vitals:
    """One look: `memory` is anonymous resident memory and `disk` a folder's size, in bytes; the others are counts."""

    seconds: float
    memory: int
    open_files: int
    threads: int
    mapped_files: int
    temporary_files: int
    disk: int


def supported() -> bool:
    """Whether this system has what `vitals` reads."""
    return Path("/proc/self/smaps_rollup").exists() and Path("/proc/self/fd").is_dir()


def vitals(folder: Path) -> Vitals:
    """Look at this process, at its own temporary folder, and at what `folder` takes on the disk."""
    gc.collect()
    return Vitals(
        time.monotonic(),
        _status("RssAnon") * 1024,
        sum(1 for _ in Path("/proc/self/fd").iterdir()),
        threading.active_count(),
        sum(1 for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line),
        sum(1 for _ in Path(tempfile.gettempdir()).iterdir()),
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def judged(samples: list[Vitals]) -> dict[str, Any]:
    """For every vital its range and rise over the last two thirds of `samples`, and the names of those that leak.

    The rise is that of a straight line fitted by least squares. It is a leak if it exceeds three times the samples'
    standard deviation around the line, and also what `_ALLOWED` lets pass (for counts: one half).
    """
    kept = samples[len(samples) // 3 :]
    found: dict[str, Any] = {"samples": len(kept), "minutes": round((kept[-1].seconds - kept[0].seconds) / 60, 2)}
    leaks = []
    for name in _WATCHED:
        values = [asdict(sample)[name] for sample in kept]
        rise, noise = _line(values)
        share, units = _ALLOWED.get(name, (0.0, 0.5))
        found[name] = {"first": values[0], "last": values[-1], "max": max(values), "rise": round(rise, 1)}
        if rise > max(3 * noise, share * sum(values) / len(values), units):
            leaks.append(name)
    return {**found, "leaks": leaks}


def _line(values: list[int]) -> tuple[float, float]:
    """How much the fitted line rises from the first to the last value, and the standard deviation around it."""
    count = len(values)
    middle, mean = (count - 1) / 2, sum(values) / count
    spread = sum((at - middle) ** 2 for at in range(count)) or 1.0
    slope = sum((at - middle) * (value - mean) for at, value in enumerate(values)) / spread
    rest = [value - mean - slope * (at - middle) for at, value in enumerate(values)]
    return slope * (count - 1), (sum(r * r for r in rest) / count) ** 0.5
