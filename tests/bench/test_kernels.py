"""The kernels' timings: every kernel has its line, and the ratios are what they say."""

from __future__ import annotations

import json

import pytest
import torch

from msa_plugin.bench.kernels import Timing, kernel_timings


def test_every_kernel_has_a_line():
    rows = list(kernel_timings(torch.device("cpu"), chunks=1024, runs=1))
    assert {row.what.split(" ")[0].rstrip(",") for row in rows} == {"copy", "routing", "pooling", "decode"}
    assert rows[0].of_copy == pytest.approx(1.0)
    assert len({row.what for row in rows}) == len(rows) == 19
    assert all(json.loads(json.dumps(row.row()))["bytes"] > 0 for row in rows)


def test_ratios():
    timing = Timing("it", 100, kernel_s=2.0, twin_s=6.0, copy_bytes_per_s=200.0)
    assert (timing.of_copy, timing.speedup) == (0.25, 3.0)
    assert "25.0% of copy" in str(timing) and "3.00 x twin" in str(timing)
