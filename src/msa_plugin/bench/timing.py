"""Durations in numbers, and failures in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from msa_plugin.errors import MSAError


def percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """5th, 50th and 95th percentile, interpolated."""
    low, middle, high = np.percentile(np.asarray(seconds, dtype=np.float64), [5, 50, 95])
    return float(low), float(middle), float(high)


def reason(error: Exception) -> str:
    """Why something did not run, with the kind of error where it is not one of ours."""
    return str(error) if isinstance(error, MSAError) else f"{type(error).__name__}: {error}"
