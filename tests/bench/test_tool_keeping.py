"""`tools/bench/keeping.py` on the tiny backbone: what it measures is there, and banks go or stay as told."""

import tempfile

import pytest
import torch
from keeping import measure

from msa_plugin.errors import ConfigError
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter


@pytest.fixture(scope="module")
def adapter(backbone):
    return tiny_adapter(backbone, beside=True)


def test_every_size_is_opened_asked_and_changed_and_files_are_added(tmp_path, backbone, adapter):
    rows = measure(backbone, adapter, passages=(30, 60), files=5, changes=3, repeats=1, folder=tmp_path)
    *opened, files = rows
    assert [row["passages"] for row in opened] == [30, 60] and files["files"] == 5
    for row in opened:
        assert row["ratio"] == pytest.approx((row["open_s"] + row["first_s"]) / row["warm_s"])
        assert row["over_keys_ratio"] == pytest.approx(row["all_s"] / row["keys_s"]) and row["look_ratio"] < 1
        named = ("bytes_words", "update_s", "after_update_s", "delete_s", "after_delete_s")
        assert min(row[name] for name in named) > 0
    with LatentMemory.open(tmp_path / "passages-60", model=backbone, adapter=adapter, reading="text") as memory:
        stats = memory.stats()
        assert (stats.documents, stats.deleted) == (57, 6)  # three were replaced, then deleted
        assert {"words", "names"} <= memory.engine.retriever.signals.weights.keys()
    assert not (tmp_path / "files").exists()


def test_banks_are_gone_unless_they_are_kept(tmp_path, backbone, adapter, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    [row] = measure(backbone, adapter, passages=(10,), files=0, changes=0, repeats=1)
    assert "update_s" not in row and not list(tmp_path.iterdir())


def test_passages_of_a_folder_fill_banks(tmp_path, backbone, adapter):
    (tmp_path / "given").mkdir()
    line = '{"_id": "k", "title": "Kestrel Mill", "text": "Anna Veld built it."}'
    (tmp_path / "given" / "a.jsonl").write_text(f"{line}\n")
    given = {"folder": tmp_path, "distractors": tmp_path / "given"}
    list(measure(backbone, adapter, passages=(4,), files=0, changes=0, repeats=1, **given))
    with LatentMemory.open(tmp_path / "passages-4", model=backbone, adapter=adapter, reading="text") as memory:
        documents = memory.get(list(memory.ids()))
    assert {d.title for d in documents} == {"Kestrel Mill"} and documents[0].text == "Anna Veld built it."


def test_seconds_of_several_threads_are_not_added_up(backbone, adapter, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ConfigError, match="with one"):
        list(measure(backbone, adapter, cpu_clock=True))
