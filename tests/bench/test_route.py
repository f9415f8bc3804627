"""The routing benchmark at a tiny size: fields and agreement, never times."""

from __future__ import annotations

import builtins

import pytest
import torch

from msa_plugin.bench.route import SHAPES, Route, RouteShape, peak_bytes
from msa_plugin.errors import ConfigError, MissingExtraError

FIELDS = {
    *("name", "heads", "kv_heads", "head_dim", "tokens", "width", "chunks", "documents", "k", "threads", "repeats"),
    *("seed", "ours_ms", "heads_ms", "faiss_ms", "ratio_heads", "ratio_faiss", "agree", "peak_bytes", "read_gb_s"),
    *("copy_gb_s", "bandwidth_share"),
}


def test_rows_and_agreement(capsys):
    pytest.importorskip("faiss")
    shapes = (*SHAPES, RouteShape("tiny", heads=2, kv_heads=1, head_dim=8, tokens=3))
    rows = list(Route(chunks=(5, 300), k=4, seed=1, repeats=1, copy_bytes=1 << 20).rows(shapes))
    assert [(r["name"], r["chunks"]) for r in rows] == [(s.name, c) for s in shapes for c in (5, 300)]
    for row in rows:
        assert set(row) == FIELDS
        assert row["agree"] is True
        assert min(row[f] for f in FIELDS - {"name", "agree", "seed"}) > 0
        assert row["seed"] == 1
    assert capsys.readouterr().out == ""
    assert len(Route.table(rows).splitlines()) == len(rows) + 1


@pytest.mark.parametrize("change", [{"chunks": (0,)}, {"k": 0}, {"repeats": 0}])
def test_sizes_below_one_are_refused(change):
    with pytest.raises(ConfigError):
        Route(**({"chunks": (10,)} | change))


def test_without_faiss_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"msa-plugin\[faiss\]"):
        next(Route(chunks=(10,)).rows())


def test_peak_bytes_counts_what_is_alive_together():
    given = torch.zeros(1000)

    def call():
        for _ in range(5):
            first = given + 1  # 4000 bytes
            second = first.double()  # 8000 more
            second.view(10, 100)[:5].add_(1)
            del first, second

    assert peak_bytes(call) == 12000
