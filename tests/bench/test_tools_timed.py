"""The scripts in tools/bench that time kernels, decoding, rounds and reading modes, and how they are called."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import bench_shell
import pytest
import reading_modes
import time_decoding
import time_encoding
import time_rounds
import torch
from kernel_timings import kernel_timings

import reference_checkpoint as reference
from msa_plugin.backbone import eight_bits
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.errors import ConfigError
from msa_plugin.types import Document
from tiny import save_tiny, tiny_adapter, tiny_backbone, tiny_lora, with_lora

SCRIPTS = sorted(path.stem for path in Path(bench_shell.__file__).parent.glob("*.py"))
MILLS = Dataset(
    "mills",
    (
        Document("a", "The mill was built by Ann.", "Mill"),
        Document("b", "Ann was born in Orm."),
        Document("c", "Nobody needs this."),
    ),
    (
        Question("q1", "Who built the mill?", ("Ann",), {"a": 1}),
        Question("q2", "Where was its builder born?", ("Orm",), {"a": 1, "b": 1}),
        Question("q3", "Who knows?", (), {"c": 1}),
    ),
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_with_options_can_tell_them(name):
    module = __import__(name)
    if hasattr(module, "measure"):
        assert f"tools/bench/{name}.py" in bench_shell.options(module.measure).format_help()


def test_a_script_reads_options_and_prints_a_row_a_line(tmp_path, backbone, monkeypatch, capsys):
    given = [*save_tiny(tmp_path, backbone), "--tokens", "300", "--repeats", "1", "--modes", "text, kv"]
    monkeypatch.setattr(sys, "argv", ["time_encoding.py", *given])
    bench_shell.main(time_encoding.measure)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["mode"] for row in rows] == ["text", "kv"] and all(row["tokens"] >= 300 for row in rows)
    for row in rows:
        assert row["ratio"] == pytest.approx(row["add_tokens_per_s"] / row["stock_tokens_per_s"])
    monkeypatch.setattr(sys, "argv", ["reading_modes.py", *given[:4], "--modes", "aloud"])
    with pytest.raises(SystemExit, match="error: there is no mode 'aloud'"):
        bench_shell.main(reading_modes.measure)


def test_every_kernel_has_a_line_with_its_ratios():
    rows = list(kernel_timings(torch.device("cpu"), chunks=1024, runs=1))
    assert {row["what"].split(" ")[0].rstrip(",") for row in rows} == {"copy", "routing", "pooling", "decode"}
    assert rows[0]["of_copy"] == pytest.approx(1.0)
    assert len({row["what"] for row in rows}) == len(rows) == 19
    for row in json.loads(json.dumps(rows)):
        assert row["of_copy"] == pytest.approx(row["bytes"] / row["kernel_s"] / rows[0]["copy_bytes_per_s"])
        assert row["speedup"] == pytest.approx(row["twin_s"] / row["kernel_s"])


@pytest.mark.parametrize("rows", [1, 3])
def test_both_ways_read_the_same_and_only_one_writes_with_int8(backbone, monkeypatch, rows):
    assert eight_bits.multiplies()
    seen, product = [], eight_bits._product
    monkeypatch.setattr(eight_bits, "_product", lambda x, *given: seen.append(len(x)) or product(x, *given))
    found = list(time_decoding.measure(backbone, tiny_adapter(backbone), prompt=90, tokens=4, rows=rows, repeats=2))
    assert [row["weights"] for row in found] == ["full", "int8"] and found[0]["over_full"] == 1
    assert all(row["prefill_s"] > 0 and row["decode_s"] > 0 and row["over_full"] > 0 for row in found)
    linear = len(seen) / (1 + 2 * 3)  # two tokens to warm up, then four twice, of which the prefill has the first
    assert linear == int(linear) > 0 and set(seen) == {rows}


def test_later_rounds_compute_less_and_the_same(tmp_path):
    folder = reference.write(tmp_path / "checkpoint")
    backbone = Backbone.load(str(folder), device="cpu", dtype="float32")  # auto may be bfloat16, which is less exact
    rows = list(time_rounds.measure(backbone, None, rounds=3, per_round=1, repeats=1))
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert rows[0]["layer_tokens"] == 1 and rows[0]["new_tokens"] == rows[0]["tokens"]
    for before, row in pairwise(rows):
        assert row["new_tokens"] == row["tokens"] - before["tokens"]
        assert row["layer_tokens"] == pytest.approx(1 - before["tokens"] / row["tokens"] / 2)  # half of the layers
    assert all(row["time"] > 0 and row["difference"] < 1e-3 for row in rows)


def test_rounds_need_a_model_that_writes_ids(backbone):
    with pytest.raises(ConfigError, match="does not write ids"):
        list(time_rounds.measure(backbone, tiny_adapter(backbone)))


@pytest.fixture(scope="module")
def lora_answers():
    """A backbone, and an adapter whose LoRA answers too."""
    backbone = tiny_backbone()
    return backbone, with_lora(tiny_adapter(backbone, read_latent=True), tiny_lora(backbone.model), answers=True)


def read(backbone, adapter, *modes, dataset=MILLS, **options):
    found = reading_modes.measure(backbone, adapter, data=dataset, modes=modes, repeats=1, **options)
    return {row["mode"]: row for row in found}


def test_modes_of_a_lora_that_answers_stand_beside_the_stock_models(lora_answers):
    backbone, _ = lora_answers
    found = read(*lora_answers, "text", "text (stock model)", "closed book", "closed book (stock model)", "latent/2")
    assert {row["questions"] for row in found.values()} == {2}  # one has no answer
    losses = {name: row["answer_nll"] for name, row in found.items()}
    stock = read(backbone, tiny_adapter(backbone), "text", "closed book")
    for mode in ("text", "closed book"):
        assert losses[mode] != losses[f"{mode} (stock model)"]
        assert losses[f"{mode} (stock model)"] == pytest.approx(stock[mode]["answer_nll"], abs=1e-4)
    assert found["closed book"]["bytes_per_token"] == 0 < found["text"]["bytes_per_token"]
    assert found["latent/2"]["bytes_content_per_token"] > 0 == found["text"]["bytes_content_per_token"]
    assert found["text"]["first_token_over_text"] == 1


@pytest.mark.slow
def test_every_mode_gives_its_numbers(backbone):
    found = list(reading_modes.measure(backbone, tiny_adapter(backbone), questions=3, repeats=1))
    rows = {row["mode"]: row for row in found}
    assert len(rows) == 11 and rows["text"]["same"] == 1
    assert all(row["first_token_s"] > 0 and 0 <= row["exact_match"] <= row["f1"] <= 1 for row in found)
    kv, int8 = (rows[mode]["bytes_content_per_token"] for mode in ("kv", "kv/int8"))
    assert 0 < int8 < 0.6 * kv  # which may be bfloat16 already
    _, small = reading_modes.measure(backbone, tiny_adapter(backbone), questions=3, repeats=1, modes="kv,kv/int8")
    assert small["same"] > 0.8


def test_which_modes_are_measured(lora_answers):
    backbone, reading = lora_answers
    assert reading_modes.modes_for(tiny_adapter(backbone)) == list(reading_modes.MODES)
    every = [*reading_modes.MODES, "text (stock model)", "closed book (stock model)"]
    assert reading_modes.modes_for(reading) == every
    assert [row["questions"] for row in read(backbone, reading, "text", questions=1).values()] == [1]
    with pytest.raises(ConfigError, match=r"no mode .text .stock model."):
        read(backbone, tiny_adapter(backbone), "text (stock model)")
    with pytest.raises(ConfigError, match="no question with an answer"):
        read(backbone, reading, "text", dataset=Dataset("bare", MILLS.documents, MILLS.questions[2:]))
