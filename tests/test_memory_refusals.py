"""Closed, read-only, full, damaged, foreign and busy memories: which error, and what is still there afterwards."""

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from facade import PER_LAYER, opened, topics
from msa_plugin import errors
from tiny import tiny_adapter, tiny_backbone

CHANGES = {
    "add": lambda m: m.add("new"),
    "update": lambda m: m.update({"id": "violin", "text": "new"}),
    "delete": lambda m: m.delete("violin"),
    "compact": lambda m: m.compact(),
    "snapshot": lambda m: m.snapshot("s"),
    "drop_snapshot": lambda m: m.drop_snapshot("s"),
}
READS = {
    "get": lambda m: m.get("violin"),
    "ids": lambda m: list(m.ids()),
    "retrieve": lambda m: m.retrieve("violin"),
    "ask": lambda m: m.ask("violin", max_new_tokens=1),
    "stream": lambda m: list(m.stream("violin", max_new_tokens=1)),
    "stats": lambda m: m.stats(),
    "verify": lambda m: m.verify(),
    "refresh": lambda m: m.refresh(),
    "aask": lambda m: asyncio.run(m.aask("violin", max_new_tokens=1)),
}


@pytest.fixture
def stored(tmp_path, backbone, adapter):
    """A folder whose bank holds eight documents."""
    with opened(tmp_path, backbone, adapter) as memory:
        memory.add(topics())
    return tmp_path


@pytest.mark.parametrize("call", [*CHANGES.values(), *READS.values()], ids=[*CHANGES, *READS])
def test_a_closed_memory_says_so(full, call):
    full.close()
    full.close()
    with pytest.raises(errors.ConfigError, match="closed"):
        call(full)


def test_a_stream_over_a_memory_closed_meanwhile_says_so(full):
    stream = full.stream("violin")
    full.close()
    with pytest.raises(errors.MSAError, match="closed"):
        list(stream)


@pytest.mark.parametrize("how", [{"read_only": True}, {"snapshot": "s"}], ids=["read-only", "snapshot"])
@pytest.mark.parametrize("call", CHANGES.values(), ids=CHANGES)
def test_reading_handles_refuse_changes(stored, backbone, adapter, how, call):
    with opened(stored, backbone, adapter) as memory:
        memory.snapshot("s")
    with opened(stored, backbone, adapter, **how) as memory:
        with pytest.raises(errors.BankReadOnlyError):
            call(memory)
        assert len(memory.retrieve("violin", 9)) == 8
        assert memory.ask("violin", max_new_tokens=1).sources


def test_a_folder_that_may_not_be_written(stored, backbone, adapter, monkeypatch):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **kw: not mode & os.W_OK and access(path, mode, **kw))
    with pytest.raises(errors.BankReadOnlyError, match="read_only=True"):
        opened(stored, backbone, adapter)
    with pytest.raises(errors.BankReadOnlyError):
        opened(stored / "elsewhere", backbone, adapter)
    with opened(stored, backbone, adapter, read_only=True) as memory:
        assert memory.stats().documents == 8


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_a_disk_that_refuses_loses_nothing(stored, backbone, adapter, monkeypatch, call, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with opened(stored, backbone, adapter) as memory:
        before = memory.retrieve("violin", 9)
        with monkeypatch.context() as patch:
            patch.setattr(Path if call == "mkdir" else os, call, refuse)
            with pytest.raises(errors.BankWriteError, match=os.strerror(code)):
                memory.add(["new", {"id": "violin", "text": "changed"}])
        assert memory.retrieve("violin", 9) == before  # the handle goes on
    with opened(stored, backbone, adapter) as memory:
        assert memory.retrieve("violin", 9) == before
        assert memory.verify().ok
        assert memory.add(["new"]).added


def mismatch(stored, backbone, adapter, **settings):
    """The message of the refusal, which leaves the bank alone."""
    kept = {p: p.read_bytes() for p in stored.rglob("*") if p.suffix in (".safetensors", ".sqlite")}
    with pytest.raises(errors.FingerprintMismatchError) as caught:
        opened(stored, backbone, adapter, **settings)
    assert {p: p.read_bytes() for p in stored.rglob("*") if p in kept} == kept
    return str(caught.value)


def test_another_model_is_named(stored):
    other = tiny_backbone(seed=1)
    message = mismatch(stored, other, tiny_adapter(other))
    assert "backbone: bank has" in message and "tokenizer" not in message


@pytest.mark.parametrize("routing", [{"layers": (0, 1)}, {"pooling": 16}, PER_LAYER], ids=["layers", "pooling", "mode"])
def test_another_adapter_is_named(stored, backbone, routing):
    assert "adapter: bank has" in mismatch(stored, backbone, tiny_adapter(backbone, **routing))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"window": 64}, "window"),
        ({"reading": "kv"}, "content"),
        ({"reading": "latent"}, "content"),
        ({"keys_dtype": "float32"}, "dtype"),
    ],
    ids=["window", "kv", "latent", "dtype"],
)
def test_another_setting_is_named(stored, backbone, adapter, settings, field):
    assert f"{field}: bank has" in mismatch(stored, backbone, adapter, **settings)


def test_settings_that_latents_do_not_depend_on_may_change(stored, backbone, adapter):
    with opened(stored, backbone, adapter, batch_tokens=64, context_tokens=10, top_k=2, tile_chunks=1) as memory:
        assert len(memory.retrieve("violin")) == 2


def test_an_adapter_of_another_model_is_refused_before_a_bank_exists(tmp_path, backbone):
    for other in (tiny_backbone(seed=1), tiny_backbone(hidden_size=64)):
        with pytest.raises(errors.AdapterError, match="calibrate"):
            opened(tmp_path, backbone, tiny_adapter(other))
        tiny_adapter(other).save(tmp_path / "adapter")
        with pytest.raises(errors.AdapterError, match="calibrate"):
            opened(tmp_path, backbone, tmp_path / "adapter")
    with pytest.raises(errors.AdapterError):
        opened(tmp_path, backbone, tmp_path / "no such adapter")
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize("call", CHANGES.values(), ids=CHANGES)
def test_a_second_writer_waits_and_then_gives_up(stored, backbone, adapter, call):
    held, done = threading.Event(), threading.Event()

    def hold():
        with opened(stored, backbone, adapter) as other, other.engine.bank.writing():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        with opened(stored, backbone, adapter, lock_timeout=0.05) as memory:
            with pytest.raises(errors.BankLockedError, match="writing"):
                call(memory)
            assert len(memory.retrieve("violin", 9)) == 8  # reading needs no lock
    finally:
        done.set()
        thread.join()
    with opened(stored, backbone, adapter, lock_timeout=5) as memory:
        assert memory.add("new").added


def test_a_window_longer_than_the_backbone_reads_is_refused_before_a_bank_exists(tmp_path, backbone, adapter):
    with pytest.raises(errors.ConfigError, match="4096"):
        opened(tmp_path, backbone, adapter, window=5000)
    assert not (tmp_path / "bank").exists()
