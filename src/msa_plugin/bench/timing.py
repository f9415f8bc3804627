"""Durations in numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """5th, 50th and 95th percentile, interpolated."""
    low, middle, high = np.percentile(np.asarray(seconds, dtype=np.float64), [5, 50, 95])
    return float(low), float(middle), float(high)
