"""Checkpoints in the reference's format, as a user opens them: sharded or not, checked before a weight is read."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import reference_checkpoint as reference
from msa_plugin.backbone import checkpoint, loading
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.checkpoint import load_reference
from msa_plugin.backbone.placement import Placement
from msa_plugin.errors import BackboneNotFoundError, CheckpointError, FingerprintMismatchError, MSAError
from msa_plugin.memory import LatentMemory
from tiny import tiny_tokenizer


def test_it_opens_by_path_with_its_own_adapter(tmp_path):
    folder = reference.write(tmp_path / "checkpoint", top_k_docs=5)
    with LatentMemory.open(tmp_path / "bank", model=str(folder), dtype="float32") as memory:
        memory.add(["violins are made of spruce", "glaciers are made of ice"])
        assert len(memory.retrieve("violin")) == 2
        config = memory.engine.adapter.config
    assert config.top_k == 5
    assert config.routing.layers == (2, 3)
    assert config.abilities.emit_ids and config.abilities.read_latent and config.numbered


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_weight_arrives(tmp_path, shards, dtype):
    weights = reference.tensors()
    folder = reference.write(tmp_path, weights=weights, shards=shards)
    backbone, adapter = load_reference(folder, dtype=getattr(torch, dtype), tokenizer=True)
    for name, tensor in backbone.model.named_parameters():
        assert torch.equal(tensor, weights[name].to(getattr(torch, dtype))), name
    for layer, router in adapter.router.layers.items():
        assert torch.equal(router.q_weight, weights[f"model.layers.{layer}.self_attn.router_q_proj.0.weight"])
        assert torch.equal(router.k_weight, weights[f"model.layers.{layer}.self_attn.router_k_proj.0.weight"])
    assert backbone.model.lm_head.weight is backbone.model.model.embed_tokens.weight
    assert not any(t.is_meta for t in (*backbone.model.parameters(), *backbone.model.buffers()))


def test_sharding_and_dtype_do_not_change_what_a_bank_is_bound_to(tmp_path):
    one = load_reference(reference.write(tmp_path / "one"), tokenizer=True)
    many = load_reference(reference.write(tmp_path / "many", shards=4), dtype=torch.bfloat16, tokenizer=True)
    assert one[0].weights_hash() == many[0].weights_hash()
    assert one[1].hash() == many[1].hash()


def test_weights_of_a_tied_head_may_be_saved_too(tmp_path):
    weights = reference.tensors()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    backbone, _ = load_reference(reference.write(tmp_path, weights=weights))
    assert backbone.model.lm_head.weight is backbone.model.model.embed_tokens.weight


_PEAK = """
import resource, sys, torch
from pathlib import Path
from msa_plugin.backbone.checkpoint import load_reference
import reference_checkpoint, accelerate.hooks, transformers.models.qwen3.modeling_qwen3
load_reference(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_reference(Path(sys.argv[2]), dtype=getattr(torch, sys.argv[3]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_is_one_copy_of_the_weights(tmp_path, dtype):
    small = reference.write(tmp_path / "small")
    weights = reference.tensors()
    wide, vocab = "model.layers.{}.mlp.{}_proj.weight", 30000
    inner = 200000
    for layer in range(4):
        weights[wide.format(layer, "gate")] = torch.ones(inner, 48)
        weights[wide.format(layer, "up")] = torch.ones(inner, 48)
        weights[wide.format(layer, "down")] = torch.ones(48, inner)
    weights["model.embed_tokens.weight"] = torch.ones(vocab, 48)
    size = sum(t.numel() * t.element_size() for t in weights.values())
    top = {"intermediate_size": inner, "vocab_size": vocab}
    large = reference.write(tmp_path / "large", weights=weights, shards=12, top=top)
    path = {"PYTHONPATH": str(Path(reference.__file__).parent), "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(small), str(large), dtype], capture_output=True, text=True, env=path
    )
    assert done.returncode == 0, done.stderr
    # Half as many bytes in bfloat16, with at most some shards' pages beside them.
    kept = size if dtype == "float32" else size / 2
    assert int(done.stdout) < kept + 0.35 * size


def test_a_checkpoint_without_own_method_name_is_not_cosine_unless_told(tmp_path, caplog):
    folder = reference.write(tmp_path, aux_loss_method="INFONCE_DECOUPLE")
    with caplog.at_level(logging.WARNING):
        plain = load_reference(folder)[1]
    assert "INFONCE_DECOUPLE" in caplog.text and "cosine=True" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        told = load_reference(folder, cosine=True)[1]
        load_reference(reference.write(tmp_path / "exact"))
    assert not caplog.text
    assert (plain.config.routing.normalize, told.config.routing.normalize) == (False, True)
    assert plain.config.routing.scale == pytest.approx(16**-0.5) and told.config.routing.scale == 1.0


def test_the_cosine_rule_is_part_of_what_a_bank_is_bound_to(tmp_path):
    folder = str(reference.write(tmp_path / "checkpoint", aux_loss_method="INFONCE_FOCAL"))
    LatentMemory.open(tmp_path / "bank", model=folder, cosine=True).close()
    with pytest.raises(FingerprintMismatchError, match="adapter"):
        LatentMemory.open(tmp_path / "bank", model=folder)


@pytest.mark.parametrize(
    ("msa", "layers"),
    [
        ({"router_layer_idx": "all"}, (0, 1, 2, 3)),
        ({"router_layer_idx": [3, 1]}, (1, 3)),
        ({"router_layer_idx": 2}, (2,)),
    ],
)
def test_ways_to_list_layers(tmp_path, msa, layers):
    folder = reference.write(tmp_path, weights=reference.tensors(layers=layers), **msa)
    assert load_reference(folder)[1].config.routing.layers == layers


def test_a_shared_router_needs_no_projections(tmp_path):
    folder = reference.write(tmp_path, weights=reference.tensors(layers=()), decouple_router=False)
    assert load_reference(folder)[1].config.routing.source == "attention"


def _without(*names):
    return {n: t for n, t in reference.tensors().items() if n not in names}


ROUTER = "model.layers.3.self_attn.router_k_proj.0.weight"
WRONG = [
    ({"router_layer_idx": "2,9"}, "router_layer_idx names layer 9"),
    ({"router_layer_idx": "2,x"}, "router_layer_idx"),
    ({"router_layer_idx": "2,2"}, "router_layer_idx names a layer twice"),
    ({"router_layer_idx": "-1"}, "router_layer_idx"),
    ({"router_layer_idx": [2.5]}, "router_layer_idx"),
    ({"router_layer_idx": []}, "router_layer_idx"),
    ({"router_layer_idx": None}, "router_layer_idx is missing"),
    ({"head_reduce_method": "median"}, "head_reduce_method"),
    ({"query_reduce_method": "pooled"}, "query_reduce_method"),
    ({"chunk_reduce_method": "sum"}, "chunk_reduce_method"),
    ({"aux_loss_method": "HINGE"}, "aux_loss_method"),
    ({"pooling_kernel_size": 0}, "pooling_kernel_size"),
    ({"pooling_kernel_size": "8,16"}, "pooling_kernel_size"),
    ({"pooling_kernel_size": None}, "pooling_kernel_size"),
    ({"pooling_kernel_size": 100_000}, "max_position_embeddings"),
    ({"top": {"pooling_kernel_size": 16}}, "pooling_kernel_size is 16"),
    ({"top": {"memory_config": {"pooling_kernel_size": 64}}}, "memory_config.pooling_kernel_size is 64"),
    ({"decouple_pooling_mode": "max"}, "decouple_pooling_mode"),
    ({"decouple_router": "yes"}, "decouple_router"),
    ({"top_k_docs": 0}, "top_k_docs"),
    ({"doc_top_k": "many"}, "doc_top_k"),
    ({"top": {"hidden_size": None}}, "hidden_size"),
    ({"top": {"num_hidden_layers": 5}}, "model.layers.4"),
    ({"top": {"vocab_size": 999}}, "embed_tokens.weight has shape"),
    ({"top": {"vocab_size": 999, "tie_word_embeddings": False}}, "lm_head.weight is missing"),
    ({"top": {"msa_config": [1]}}, "msa_config"),
    ({"weights": _without(ROUTER)}, f"{ROUTER} is missing"),
    (
        {"weights": {**reference.tensors(), "model.layers.0.self_attn.gate.weight": torch.ones(1)}},
        "gate.weight is unexp",
    ),
    ({"weights": {**reference.tensors(), ROUTER: torch.ones(5, 48)}}, "router_k_proj.0.weight has shape"),
    ({"tokenizer": tiny_tokenizer()}, "no marker token <.object_ref_end.>"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[m for _, m in WRONG])
def test_what_is_wrong_is_named_before_a_weight_is_read(tmp_path, monkeypatch, changes, message):
    def never(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(checkpoint, "_fill", never)
    folder = reference.write(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        Backbone.load(str(folder), device="cpu", dtype="float32")


def test_an_index_that_does_not_fit_its_files(tmp_path):
    folder = reference.write(tmp_path, shards=2)
    index = folder / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    found["weight_map"][ROUTER] = next(f for f in set(found["weight_map"].values()) if f != found["weight_map"][ROUTER])
    index.write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match=r"lacks .*router_k_proj"):
        load_reference(folder)
    found["weight_map"][ROUTER] = "../elsewhere.safetensors"
    index.write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match="not a file name"):
        load_reference(folder)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load_reference(folder)


def test_files_that_are_missing_or_damaged(tmp_path):
    folder = reference.write(tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x01" * 64)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_reference(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_reference(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(MSAError):
        Backbone.load(str(folder))


def test_a_plain_model_is_no_reference_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(BackboneNotFoundError):
        Backbone.load(str(tmp_path))


def test_balanced_on_one_device_is_that_device(tmp_path):
    folder = reference.write(tmp_path / "checkpoint")
    with LatentMemory.open(tmp_path / "bank", model=str(folder), device="balanced", dtype="float32") as memory:
        assert memory.engine.backbone.device.type in ("cpu", "cuda")


def test_a_device_map_gives_every_parameter_its_device():
    placement = Placement.spread({"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, "lm_head": 1})
    assert placement.first == torch.device("cuda:0")
    assert placement.device("model.layers.1.self_attn.q_proj.weight") == torch.device("cuda:1")
    assert placement.device("model.layers.0.mlp.up_proj.weight") == torch.device("cuda:0")
    with pytest.raises(MSAError, match="does not fit"):
        Placement.spread({"": "disk"})


def test_a_hub_id_is_downloaded_without_pickled_weights(tmp_path, monkeypatch):
    folder = reference.write(tmp_path / "snapshot", shards=2)
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(loading, "cached_file", lambda name, file: str(folder / file))
    monkeypatch.setattr(loading, "snapshot_download", download)
    monkeypatch.setattr(loading, "check_hub", lambda name, offline_way: False)  # it is there
    backbone = Backbone.load("owner/model", device="cpu", dtype="float32")
    assert backbone.own_adapter is not None and backbone.own_adapter.config.abilities.emit_ids
    [(name, patterns)] = asked
    assert name == "owner/model" and "*.safetensors" in patterns
    assert not any("bin" in p or p.endswith((".pt", ".py")) for p in patterns)
