"""`msa convert`: a plain backbone with our adapter to the reference's format and back, bit for bit."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import reference_checkpoint as reference
from facade import PER_LAYER
from golden import CASE, absent
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.checkpoint import load_reference
from msa_plugin.backbone.checkpoint_format import shards
from msa_plugin.backbone.convert import from_reference, to_reference
from msa_plugin.backbone.lora import Lora, Update
from msa_plugin.cli.app import app
from msa_plugin.config import Abilities
from msa_plugin.errors import AdapterError, CheckpointError
from tiny import tiny_adapter, tiny_lora, tiny_model, with_lora


def _all(folder):
    return {n: load_file(str(folder / file))[n] for file, names in shards(folder).items() for n in names}


def _bits(folder):
    tensors = _all(folder)
    return {
        n: (str(t.dtype), hashlib.sha256(t.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest())
        for n, t in ((n, t.reshape(-1)) for n, t in tensors.items())
    }


def _plain(folder, dtype=torch.bfloat16):
    tiny_model("qwen3", seed=5).to(dtype).save_pretrained(folder)
    reference.marker_tokenizer().save_pretrained(folder)
    return folder


def _adapter(plain, **changes):
    backbone = Backbone.load(str(plain), device="cpu", dtype="float32")
    made = tiny_adapter(backbone, read_latent=True, **{**PER_LAYER, "layers": (1, 3), **changes})
    settings = {
        "prefix": None,
        "numbered": True,
        "id_width": 4,
        "measured": {"recall": 0.5},
        "abilities": Abilities(route=True, read_latent=True, emit_ids=True),
        "provenance": {"made": "here"},
    }
    return Adapter(made.config.model_copy(update=settings), made.router)


@pytest.mark.slow
@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000])
def test_there_and_back_is_bit_identical(tmp_path, shard_bytes):
    plain = _plain(tmp_path / "plain")
    adapter = _adapter(plain)
    adapter.save(tmp_path / "adapter")
    to_reference(plain, adapter, tmp_path / "checkpoint", shard_bytes=shard_bytes)
    assert (len(shards(tmp_path / "checkpoint")) > 1) == (shard_bytes < 1 << 30)
    from_reference(tmp_path / "checkpoint", tmp_path / "back")
    assert _bits(tmp_path / "back" / "backbone") == _bits(plain)
    for file in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "back" / "adapter" / file).read_bytes() == (tmp_path / "adapter" / file).read_bytes()
    again = Backbone.load(str(tmp_path / "back" / "backbone"), device="cpu", dtype="float32")
    before = Backbone.load(str(plain), device="cpu", dtype="float32")
    assert again.model.config.to_dict() | {"_name_or_path": ""} == before.model.config.to_dict() | {"_name_or_path": ""}
    assert again.tokenizer_hash() == before.tokenizer_hash()


def test_what_is_written_loads_as_a_checkpoint(tmp_path):
    plain = _plain(tmp_path / "plain")
    adapter = _adapter(plain, normalize=False, scale=16**-0.5)
    to_reference(plain, adapter, tmp_path / "checkpoint")
    backbone, loaded = load_reference(tmp_path / "checkpoint", tokenizer=True)
    assert loaded.hash() == adapter.hash()
    assert loaded.config.routing == adapter.config.routing
    assert loaded.config.id_width == 4
    raw = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert raw["model_type"] == "msa" and "rope_theta" in raw and "rope_parameters" not in raw
    ids = torch.tensor([[5, 6, 7]])
    stock = Backbone.load(str(plain), device="cpu", dtype="float32").model
    assert torch.equal(backbone.model(ids).logits, stock(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lora_is_added_to_the_weights(tmp_path, dtype):
    plain = _plain(tmp_path / "plain", dtype)
    backbone = Backbone.load(str(plain), device="cpu", dtype="float32")
    lora = tiny_lora(backbone.model)
    adapter = with_lora(_adapter(plain), lora)
    to_reference(plain, adapter, tmp_path / "checkpoint", shard_bytes=20_000)
    before, after = _all(plain), _all(tmp_path / "checkpoint")
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {f"model.layers.{layer}.{module}.weight" for layer, module in lora.updates}
    assert all(after[n].dtype == dtype for n in before)
    loaded, written = load_reference(tmp_path / "checkpoint", tokenizer=True)
    assert written.lora is None and written.config.lora is None
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode(), lora.added(backbone.model):
        expected = backbone.model(ids).logits
    close = 1e-4 if dtype == torch.float32 else 0.1  # the sum is rounded to what the file stores
    torch.testing.assert_close(loaded.model(ids).logits, expected, atol=close, rtol=close)


def test_a_lora_of_another_model_is_not_written(tmp_path):
    plain = _plain(tmp_path / "plain")
    wide = Lora({(0, "mlp.up_proj"): Update(torch.zeros(2, 50), torch.zeros(64, 2))})
    adapter = _adapter(plain)
    with pytest.raises(AdapterError, match="another model"):
        to_reference(plain, Adapter(adapter.config, adapter.router, wide), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@absent
def test_a_recorded_checkpoint_taken_apart_and_put_together_again(tmp_path):
    from_reference(CASE, tmp_path / "parts")
    parts = tmp_path / "parts"
    to_reference(parts / "backbone", Adapter.load(parts / "adapter"), tmp_path / "again")
    assert _bits(tmp_path / "again") == _bits(CASE)
    old, new = (json.loads((f / "config.json").read_text()) for f in (CASE, tmp_path / "again"))
    assert new["msa_config"] == old["msa_config"]
    before, after = (load_reference(folder, tokenizer=True)[1] for folder in (CASE, tmp_path / "again"))
    assert after.hash() == before.hash()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "shared"}, "selection='shared'"),
        ({"selection": "shared", "token_weighted": True}, "cannot express"),
        ({"query_reduce": "pooled"}, "query_reduce='pooled'"),
        ({"heads": 2, "kv_heads": 2}, "heads and widths"),
        ({"scale": 2.0}, "scores either cosines"),
    ],
)
def test_what_the_format_cannot_express_is_refused(tmp_path, changes, message):
    plain = _plain(tmp_path / "plain")
    with pytest.raises(CheckpointError, match=message):
        to_reference(plain, _adapter(plain, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_refusals(tmp_path):
    plain = _plain(tmp_path / "plain")
    adapter = _adapter(plain)
    plainly = Adapter(adapter.config.model_copy(update={"numbered": False}), adapter.router)
    with pytest.raises(CheckpointError, match="documents without numbers"):
        to_reference(plain, plainly, tmp_path / "out")
    other = Adapter(adapter.config.model_copy(update={"backbone": "0" * 32}), adapter.router)
    with pytest.raises(CheckpointError, match="other weights"):
        to_reference(plain, other, tmp_path / "out")
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    with pytest.raises(CheckpointError, match="Qwen3 models only"):
        to_reference(tmp_path / "llama", adapter, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no reference checkpoint"):
        from_reference(plain, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(CheckpointError, match="not empty"):
        to_reference(plain, adapter, tmp_path / "full")


def test_the_command(tmp_path):
    plain = _plain(tmp_path / "plain")
    _adapter(plain).save(tmp_path / "adapter")
    runner = CliRunner()
    there = ["convert", "to-reference", str(plain), str(tmp_path / "adapter"), "--out", str(tmp_path / "c"), "--json"]
    done = runner.invoke(app, there)
    assert done.exit_code == 0, done.output
    done = runner.invoke(app, ["convert", "from-reference", str(tmp_path / "c"), "--out", str(tmp_path / "parts")])
    assert done.exit_code == 0, done.output
    assert _bits(tmp_path / "parts" / "backbone") == _bits(plain)
