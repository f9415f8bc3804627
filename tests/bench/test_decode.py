"""The measurement of int8 weights while an answer is written."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.eight_bits import multiplies
from msa_plugin.bench.decode import WAYS, Decode
from msa_plugin.cli.bench import app
from tiny import tiny_adapter


@pytest.mark.parametrize("rows", [1, 3])
def test_both_ways_read_the_same_and_only_one_writes_with_int8(backbone: Backbone, monkeypatch, rows: int) -> None:
    from msa_plugin.backbone import eight_bits

    assert multiplies()
    seen, product = [], eight_bits._product
    monkeypatch.setattr(eight_bits, "_product", lambda x, *given: seen.append(len(x)) or product(x, *given))
    case = Decode(prompt=90, tokens=4, questions=rows, repeats=2)
    found = list(case.rows(backbone, tiny_adapter(backbone)))
    assert [row["weights"] for row in found] == ["full", "int8"] and found[0]["over_full"] == 1
    assert all(row["prefill_s"] > 0 and row["decode_s"] > 0 and row["over_full"] > 0 for row in found)
    linear = len(seen) / (1 + 2 * 3)  # two tokens to warm up, then four twice, of which the prefill has the first
    assert linear == int(linear) > 0 and set(seen) == {rows}


def test_the_command_prints_ratios(backbone: Backbone, monkeypatch) -> None:
    monkeypatch.setattr(Decode, "rows", lambda case: iter({**ROW, "weights": way} for way in WAYS))
    said = CliRunner().invoke(app, ["decode", "--rows", "2"])
    assert said.exit_code == 0, said.output
    assert "0.61" in said.output and "int8" in said.output


ROW = {"prefill_s": 0.6, "decode_s": 0.5, "answer_s": 1.1, "decode_over_full": 0.61, "over_full": 0.73}
