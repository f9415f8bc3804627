"""The kernels' timings: every kernel has its line, and the ratios are what they say."""

from __future__ import annotations

import json

import pytest
import torch

from msa_plugin.bench.kernels import kernel_timings


def test_every_kernel_has_a_line_with_its_ratios():
    rows = list(kernel_timings(torch.device("cpu"), chunks=1024, runs=1))
    assert {row["what"].split(" ")[0].rstrip(",") for row in rows} == {"copy", "routing", "pooling", "decode"}
    assert rows[0]["of_copy"] == pytest.approx(1.0)
    assert len({row["what"] for row in rows}) == len(rows) == 19
    for row in json.loads(json.dumps(rows)):
        assert row["of_copy"] == pytest.approx(row["bytes"] / row["kernel_s"] / rows[0]["copy_bytes_per_s"])
        assert row["speedup"] == pytest.approx(row["twin_s"] / row["kernel_s"])
