"""Adapter files: a round trip, and an error of our own for everything that is wrong with one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from facade import PER_LAYER
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.loading import cache_dir
from msa_plugin.backbone.lora import Lora, Update
from msa_plugin.config import MemoryConfig
from msa_plugin.engine.adapters import calibrated_path, find_adapter
from msa_plugin.errors import AdapterError, ConfigError
from tiny import tiny_adapter, tiny_backbone, tiny_lora, with_lora

VARIANTS = [
    {},
    {"token_weighted": True, "joint": True},
    PER_LAYER,
    {**PER_LAYER, "source": "attention"},
]


@pytest.mark.parametrize("routing", VARIANTS)
def test_round_trip(tmp_path, backbone, routing):
    adapter = tiny_adapter(backbone, **routing)
    adapter.save(tmp_path)
    loaded = Adapter.load(tmp_path)
    assert loaded.config == adapter.config
    assert loaded.hash() == adapter.hash()
    for layer, part in adapter.router.layers.items():
        assert torch.equal(part.q_weight, loaded.router.layers[layer].q_weight)


def test_the_hash_follows_what_latents_depend_on(backbone):
    base = tiny_adapter(backbone)
    named = Adapter(base.config.model_copy(update={"name": "another", "top_k": 9}), base.router)
    assert named.hash() == base.hash()
    assert tiny_adapter(backbone, pooling=16).hash() != base.hash()
    tiny_weights = tiny_adapter(backbone)
    tiny_weights.router.layers[0].k_weight[0, 0] += 1
    assert tiny_weights.hash() != base.hash()


def _break_config(folder, **changes):
    raw = json.loads((folder / "adapter.json").read_text())
    for key, value in changes.items():
        at = raw
        *path, last = key.split("__")
        for step in path:
            at = at[step]
        at[last] = value
    (folder / "adapter.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format_version 99"),
        ({"routing__heads": 0}, "heads"),
        ({"routing__query_reduce": "median"}, "query_reduce"),
        ({"surprise": 1}, "surprise"),
        ({"hidden": 47}, "47 columns"),
        ({"routing__head_dim": 25}, "expected 25"),
        ({"routing__layers": [0, 1, 2]}, "router.1"),
        ({"routing__layers": [2, 0]}, "ascending"),
        ({"routing__token_weighted": True}, "token_weighted"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, adapter, change, message):
    adapter.save(tmp_path)
    _break_config(tmp_path, **change)
    with pytest.raises(AdapterError, match=message):
        Adapter.load(tmp_path)


def test_damaged_files_are_reported(tmp_path, adapter):
    with pytest.raises(AdapterError, match="cannot read"):
        Adapter.load(tmp_path / "absent")
    adapter.save(tmp_path)
    weights = tmp_path / "adapter.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError, match="cannot read"):
        Adapter.load(tmp_path)
    weights.write_bytes(whole)
    tensors = load_file(str(weights))
    tensors.pop("router.2.q_weight")
    save_file(tensors, str(weights))
    with pytest.raises(AdapterError, match=r"router\.2"):
        Adapter.load(tmp_path)
    (tmp_path / "adapter.json").write_text("[1, 2")
    with pytest.raises(AdapterError, match="cannot read"):
        Adapter.load(tmp_path)


def test_an_adapter_of_another_backbone_is_refused(tmp_path, adapter):
    adapter.save(tmp_path)
    assert find_adapter(tiny_backbone(), tmp_path).hash() == adapter.hash()
    with pytest.raises(AdapterError, match="weights"):
        find_adapter(tiny_backbone(seed=5), tmp_path)


def test_a_calibrated_adapter_is_found_by_its_backbone(tmp_path, monkeypatch, backbone, adapter):
    monkeypatch.setenv("MSA_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    with pytest.raises(AdapterError, match="msa calibrate"):
        find_adapter(backbone, None)
    adapter.save(calibrated_path(backbone))
    assert find_adapter(backbone, None).hash() == adapter.hash()


def test_settings_report_every_wrong_field():
    with pytest.raises(ConfigError, match=r"window.*top_k"):
        MemoryConfig(window=1, top_k=0)


# Adapters with a LoRA


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("answers", [False, True])
def test_a_lora_goes_to_disk_and_back(tmp_path, backbone, adapter, dtype, answers):
    lora = tiny_lora(backbone.model).to(backbone.device, dtype)
    saved = with_lora(adapter, lora, answers=answers)
    saved.save(tmp_path)
    loaded = find_adapter(backbone, tmp_path)
    assert loaded.config == saved.config and loaded.hash() == saved.hash()
    assert loaded.answers_with_lora is answers
    assert loaded.lora is not None and loaded.lora.updates.keys() == lora.updates.keys()
    for where, update in lora.updates.items():
        for part in ("down", "up"):
            mine, theirs = getattr(update, part), getattr(loaded.lora.updates[where], part)
            assert mine.dtype == theirs.dtype == dtype and torch.equal(mine, theirs)


def test_one_in_training_is_saved_as_it_stands(tmp_path, backbone, adapter):
    lora = tiny_lora(backbone.model)
    for update in lora.updates.values():
        update.up.requires_grad_()
    training = Adapter(adapter.config, adapter.router, lora)
    assert training.config.lora == lora.described()
    training.save(tmp_path)
    assert Adapter.load(tmp_path).hash() == training.hash()


def test_only_an_adapter_with_a_lora_has_the_newer_format(tmp_path, backbone, adapter):
    adapter.save(tmp_path / "plain")
    with_lora(adapter, tiny_lora(backbone.model)).save(tmp_path / "updated")
    plain, updated = (json.loads((tmp_path / f / "adapter.json").read_text()) for f in ("plain", "updated"))
    assert plain["format_version"] == 1 and "lora" not in plain
    assert updated["format_version"] == 2 and updated["lora"] == {"layers": [0, 1], "rank": 3, "answers": False}


def test_the_hash_covers_the_update_and_not_whether_answers_use_it(backbone, adapter):
    lora = tiny_lora(backbone.model)
    before = with_lora(adapter, lora).hash()
    assert before != adapter.hash()
    assert with_lora(adapter, lora, answers=True).hash() == before
    lora.updates[0, "mlp.up_proj"].up[0, 0] += 1
    assert with_lora(adapter, lora).hash() != before


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        ("lora.", {}, "weights hold none"),
        ("lora.1.", {}, r"rank 3 on layers \[0, 1\].*rank 3 on \[0\]"),
        ("lora.0.mlp.up_proj.up", {}, "lacks its up half"),
        ("-", {"lora.0.mlp.down_proj.sideways": torch.zeros(3, 48)}, "no name of a LoRA tensor"),
        ("-", {"lora.x.mlp.up_proj.down": torch.zeros(3, 48)}, "no name of a LoRA tensor"),
        ("-", {"lora.0.lm_head.down": torch.zeros(3, 48), "lora.0.lm_head.up": torch.zeros(48, 3)}, "is none of"),
        ("-", {"lora.0.mlp.up_proj.up": torch.zeros(64, 2)}, "are not"),
        ("-", {"lora.0.mlp.up_proj.up": torch.full((64, 3), torch.nan)}, "NaN"),
        ("-", {"lora.0.mlp.up_proj.up": torch.zeros(64, 3, dtype=torch.int64)}, "int64"),
        ("-", {"lora.0.mlp.up_proj.up": torch.zeros(65, 3)}, "another model"),
        ("-", {"lora.9.mlp.up_proj.up": torch.zeros(64, 3), "lora.9.mlp.up_proj.down": torch.zeros(3, 48)}, "layers"),
    ],
)
def test_malformed_updates_are_refused(tmp_path, backbone, adapter, drop, add, message):
    with_lora(adapter, tiny_lora(backbone.model)).save(tmp_path)
    weights = tmp_path / "adapter.safetensors"
    tensors = {n: t for n, t in load_file(str(weights)).items() if not n.startswith(drop)}
    save_file({**tensors, **add}, str(weights))
    with pytest.raises(AdapterError, match=message):
        find_adapter(backbone, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "do not go together"),
        ({"lora": None}, "do not go together"),
        ({"lora": None, "format_version": 1}, "does not describe"),
        ({"lora__rank": 4}, "rank 4"),
        ({"lora__rank": 0}, "rank"),
        ({"lora__surprise": 1}, "surprise"),
    ],
)
def test_a_description_that_is_wrong(tmp_path, backbone, adapter, change, message):
    with_lora(adapter, tiny_lora(backbone.model)).save(tmp_path)
    _break_config(tmp_path, **change)
    with pytest.raises(AdapterError, match=message):
        Adapter.load(tmp_path)


def test_an_update_of_another_shape_does_not_reach_the_engine(backbone, adapter):
    wide = Lora({(0, "mlp.up_proj"): Update(torch.zeros(2, 50), torch.zeros(64, 2))})
    with pytest.raises(AdapterError, match="another model"):
        find_adapter(backbone, Adapter(adapter.config, adapter.router, wide))


def test_a_reader_is_stored_in_half_precision_and_changes_no_hash(tmp_path, backbone):
    reader = tiny_lora(backbone.model, layers=(1, 3))
    base = with_lora(tiny_adapter(backbone), tiny_lora(backbone.model, layers=(0,)))
    abilities = base.config.abilities.model_copy(update={"answer": True})
    config = base.config.model_copy(update={"abilities": abilities})
    adapter = Adapter(config, base.router, base.lora, reader)
    adapter.save(tmp_path)
    loaded = Adapter.load(tmp_path)
    assert loaded.config == adapter.config and loaded.config.format_version == 3
    assert loaded.hash() == adapter.hash() == base.hash()
    for where, update in reader.updates.items():
        found = loaded.reader.updates[where]
        assert found.up.dtype == torch.float16 and torch.allclose(found.up.float(), update.up, atol=1e-3)
    base.save(tmp_path)  # the same folder, without a reader again
    assert not (tmp_path / "reader.safetensors").exists() and Adapter.load(tmp_path).reader is None
    assert "reader" not in json.loads((tmp_path / "adapter.json").read_text())
    with pytest.raises(AdapterError, match="go together"):
        Adapter(base.config, base.router, base.lora, reader)
    with pytest.raises(AdapterError, match="go together"):
        Adapter(config, base.router, base.lora)


def test_a_reader_that_is_gone_or_broken_is_an_error(tmp_path, backbone):
    base = tiny_adapter(backbone)
    abilities = base.config.abilities.model_copy(update={"answer": True})
    config = base.config.model_copy(update={"abilities": abilities})
    Adapter(config, base.router, None, tiny_lora(backbone.model, layers=(1,))).save(tmp_path)
    path = tmp_path / "reader.safetensors"
    tensors = load_file(str(path))
    name = next(iter(tensors))
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, str(path))
    with pytest.raises(AdapterError, match=r"reader\.safetensors"):
        Adapter.load(tmp_path)
    path.unlink()
    with pytest.raises(AdapterError, match="cannot read an adapter"):
        Adapter.load(tmp_path)
    _break_config(tmp_path, format_version=2)
    with pytest.raises(AdapterError, match="'reader' do not go together"):
        Adapter.load(tmp_path)
