"""A short fuzz of every reader, and the inputs that once got through."""

import contextlib
import gzip
import json
import math

import fuzz
import pytest

import reference_checkpoint
from msa_plugin import errors
from msa_plugin.backbone.adapter import Adapter, AdapterConfig
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.convert import from_reference
from msa_plugin.bench.store import Results
from msa_plugin.config import GenerationConfig, InterleaveConfig, MemoryConfig
from msa_plugin.data import datasets, jsonl
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.ingest.markup import html_to_text
from tiny import tiny_adapter, tiny_backbone, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("target", sorted(fuzz.TARGETS))
def test_a_short_fuzz(target):
    count = 20 if target in ("backbone", "bank", "checkpoint", "export") else 60
    figures = fuzz.fuzz(fuzz.TARGETS[target](), 7, 0, count)
    assert (figures["inputs"], figures["failed"]) == (count, 0), figures["failures"]


def test_a_character_reference_of_any_length():
    for digits in ("9" * 5000, "0" * 5000 + "65"):
        assert "b" in html_to_text(f"<p>&#{digits};b</p>")[1]
    assert html_to_text("<p>&#0065;&#x41;</p>")[1] == "AA"


def test_a_field_named_self():
    with pytest.raises(errors.ConfigError):
        GenerationConfig(**{"self": 1})


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (InterleaveConfig, {"cut": math.inf}),
        (InterleaveConfig, {"follow_weight": math.nan}),
        (MemoryConfig, {"lock_timeout": math.inf}),
        (GenerationConfig, {"temperature": math.inf}),
        (GenerationConfig, {"seed": 2**64}),
        (GenerationConfig, {"seed": -(2**63) - 1}),
    ],
)
def test_a_setting_that_no_arithmetic_can_use(kind, wrong):
    with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
        kind(**wrong)


def test_measured_values_are_json():
    config = tiny_adapter(tiny_backbone()).config
    with pytest.raises(errors.ConfigError, match="JSON"):
        AdapterConfig(**{**config.model_dump(), "measured": {"recall": [math.inf]}})


def test_any_log_can_hold_a_message(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"parts": {"qa": {"\ud800": 1}}}))
    with pytest.raises(errors.ConfigError, match=r"\\ud800") as caught, Results(tmp_path) as results:
        results.configure("qa", {})
    str(caught.value).encode()
    assert str(errors.BankWriteError(28, "full", "x\ud800")) == "[Errno 28] full: 'x\\ud800'"


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(
    ("file", "wrong"),
    [
        ("tokenizer_config.json", {"model_max_length": [1]}),
        ("generation_config.json", {"eos_token_id": {"id": 7}}),
        ("generation_config.json", {"eos_token_id": [[None]]}),
    ],
)
def test_a_field_that_fails_in_use(tmp_path, reference, file, wrong):
    if reference:
        reference_checkpoint.write(tmp_path)
    else:
        tiny_model("qwen3", tie_word_embeddings=True).save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **wrong}))
    with pytest.raises((errors.CheckpointError, errors.BackboneNotFoundError, errors.UnsupportedBackboneError)):
        Backbone.load(str(tmp_path), device="cpu")


def test_a_packed_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("msa_plugin.data.qrels.MAX_LINE", 1000)
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(b" " * 5000))
    with pytest.raises(errors.IngestError, match="line 1 is over 1000 bytes"):
        datasets.load_dataset(tmp_path)


def test_a_grade_of_any_length(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "x"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "x"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("q\ta\t" + "9" * 5000)
    with pytest.raises(errors.IngestError, match="a grade"):
        datasets.load_dataset(tmp_path)


def test_results_that_nobody_wrote(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"a":' + "[" * 100_000 + "\n")
    with pytest.raises(errors.ConfigError):
        jsonl.read(tmp_path / "results.jsonl")
    (tmp_path / "results.jsonl").write_text('{"part": 1}\n{"part"')
    with pytest.raises(errors.ConfigError), Results(tmp_path) as results:
        results.rows()
    (tmp_path / "config.json").write_text('{"parts": []}')
    with pytest.raises(errors.ConfigError), Results(tmp_path) as results:
        results.configure("qa", {})


@pytest.mark.parametrize("claimed", [{"num_hidden_layers": 10**9}, {"vocab_size": 2**23}, {"intermediate_size": 2**23}])
def test_a_checkpoint_that_claims_sizes(tmp_path, claimed):
    with pytest.raises(errors.CheckpointError, match=r"config\.json"):
        Backbone.load(str(reference_checkpoint.write(tmp_path, top=claimed)), device="cpu")


def test_a_config_that_cannot_be_written(tmp_path):
    checkpoint = reference_checkpoint.write(tmp_path / "checkpoint", top={"torch_dtype": [[7]]})
    with pytest.raises(errors.CheckpointError, match=r"config\.json"):
        from_reference(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "field",
    [
        {"attn_implementation": "somebody/kernel"},
        {"auto_map": {"AutoConfig": "evil.C"}, "model_type": "evil"},
        {"auto_map": {"AutoModelForCausalLM": "evil.M"}},
    ],
)
def test_code_that_a_model_names_is_not_run(tmp_path, monkeypatch, field):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked whether to run it"))
    tiny_model("qwen3", tie_word_embeddings=True).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **field}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with contextlib.suppress(errors.MSAError):
        Backbone.load(str(tmp_path), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_an_adapter_that_does_not_fit(tmp_path):
    backbone = tiny_backbone()
    tiny_adapter(backbone).save(tmp_path)
    raw = json.loads((tmp_path / "adapter.json").read_text())
    (tmp_path / "adapter.json").write_text(json.dumps({**raw, "reading": {"layers": [99], "pooling": 8}}))
    with pytest.raises(errors.AdapterError, match="99"):
        find_adapter(backbone, tmp_path)


def test_an_adapter_of_nan(tmp_path):
    adapter = tiny_adapter(tiny_backbone())
    adapter.router.layers[0].q_weight[0, 0] = float("nan")
    adapter.save(tmp_path)
    with pytest.raises(errors.AdapterError, match="NaN"):
        Adapter.load(tmp_path)


@pytest.mark.parametrize("name", ["../../../outside", "/etc", "..", ""])
def test_a_segment_lies_in_its_bank(name):
    from msa_plugin.bank.records import segment_record

    with pytest.raises(errors.BankCorruptError):
        segment_record((1, name, None, 1, 1, 1, 1, 100, "x", 0, *[None] * 8))


def test_sums_are_one_for_each_document(tmp_path):
    """A segment whose maker fitted all checksums to sums that are too few."""
    assert fuzz.fuzz(fuzz.TARGETS["bank"](), 2, 161, 1)["failed"] == 0
