"""The measurement of rounds that go on from each other."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

import reference_checkpoint as reference
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.interleave import Interleave
from msa_plugin.errors import ConfigError
from tiny import tiny_adapter


def test_later_rounds_compute_less_and_the_same(tmp_path: Path) -> None:
    folder = reference.write(tmp_path / "checkpoint")
    backbone = Backbone.load(str(folder), device="cpu", dtype="float32")  # auto may be bfloat16, which is less exact
    rows = list(Interleave(rounds=3, per_round=1, repeats=1).rows(backbone))
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert rows[0]["layer_tokens"] == 1 and rows[0]["new_tokens"] == rows[0]["tokens"]
    for before, row in pairwise(rows):
        assert row["new_tokens"] == row["tokens"] - before["tokens"]
        assert row["layer_tokens"] == pytest.approx(1 - before["tokens"] / row["tokens"] / 2)  # half of the layers
    assert all(row["time"] > 0 and row["difference"] < 1e-3 for row in rows)


def test_it_needs_a_model_that_writes_ids(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="does not write ids"):
        list(Interleave().rows(backbone, tiny_adapter(backbone)))
