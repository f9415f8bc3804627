"""Between a plain backbone with our adapter and a checkpoint in the reference's format, bit for bit.

Weights are copied as they lie in the files, whatever their dtype. What the format cannot say is refused; fields of an
adapter that change no number travel in a file beside the checkpoint, which the reference does not read.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3Config

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.checkpoint import empty_model, load_reference
from msa_plugin.backbone.checkpoint_format import (
    EXACT_COSINE,
    EXTRA,
    INDEX,
    SCALARS,
    SINGLE,
    Reference,
    check_markers,
    check_tensors,
    describe_reference,
    foreign_errors,
    is_reference,
    read_config,
    router_names,
    routing_of,
    shards,
)
from msa_plugin.backbone.lora import Lora
from msa_plugin.config import RoutingConfig
from msa_plugin.errors import CheckpointError, MSAError

SHARD_BYTES = 2 << 30
# What was trained with when an adapter does not say (the reference's resave script).
_LOSSES = {
    "aux_loss": False,
    "auxloss_weight": 0.1,
    "lmloss_weigth": 1.0,
    "recloss_weight": 0.0,
    "ansloss_weight": 1.0,
    "infonce_loss_temp": 0.1,
}
_WEIGHT = re.compile(r"model\.layers\.(\d+)\.([a-z_.]+)\.weight")
_COMPANIONS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
_ALSO = ("chat_template*", "generation_config.json")


class _Piece(NamedTuple):
    """One tensor to write: its name, bytes, and how to get it."""

    name: str
    size: int
    read: Callable[[], Tensor]


def to_reference(model: Path, adapter: Adapter, out: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the Qwen3 model in folder `model` with `adapter` to `out`, in the reference's format.

    The format knows no LoRA: an adapter's is added to the weights, in the dtype that they are stored in.
    Raises CheckpointError for what the format cannot express, or when the adapter is another model's.
    """
    raw = read_config(model)
    if raw.get("model_type") != "qwen3":
        raise CheckpointError(f"the reference's format holds Qwen3 models only; {model} is {raw.get('model_type')!r}")
    msa = _msa_config(raw, adapter)
    check_markers(_check_backbone(model, adapter).tokenizer, model)
    out = _new_folder(out)
    routers = [
        _Piece(name, tensor.nbytes, tensor.contiguous)
        for layer, both in adapter.router.layers.items()
        for name, tensor in zip(router_names(layer), (both.q_weight, both.k_weight), strict=True)
    ]
    _write(
        [*(_updated(piece, adapter.lora) for piece in _pieces(model)), *routers, *_scalars(adapter, msa)],
        out,
        shard_bytes,
    )
    _copy_companions(model, out)
    kept = adapter.config.model_dump(mode="json", include={"name", "abilities", "id_width", "provenance", "measured"})
    for name in ("answer", "read_kv"):  # the format has no place for a reader
        kept["abilities"].pop(name)
    _write_json(out / EXTRA, kept)
    _write_json(out / "config.json", _reference_config(raw, msa))


def from_reference(checkpoint: Path, out: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a reference checkpoint to `out`/backbone (a plain Qwen3 model) and `out`/adapter.

    Raises CheckpointError as loading it does.
    """
    if not is_reference(read_config(checkpoint)):
        raise CheckpointError(f"{checkpoint / 'config.json'} has no field 'msa_config'; it is no reference checkpoint")
    reference = describe_reference(checkpoint)
    expected = {n: tuple(t.shape) for n, t in empty_model(reference).state_dict().items()}
    check_tensors(reference, expected)
    adapter = load_reference(checkpoint, dtype=torch.bfloat16, tokenizer=True)[1]
    config = _plain_config(reference)
    folder = _new_folder(out) / "backbone"
    folder.mkdir()
    _write([piece for piece in _pieces(checkpoint) if piece.name in expected], folder, shard_bytes)
    _copy_companions(checkpoint, folder)
    adapter.save(out / "adapter")
    with foreign_errors(checkpoint / "config.json"):
        config.save_pretrained(folder)


def _plain_config(reference: Reference) -> Qwen3Config:
    """The backbone's own config. Raises CheckpointError for one that cannot be written, before anything else is."""
    config = reference.model
    config.architectures = ["Qwen3ForCausalLM"]
    kind = reference.raw.get("torch_dtype", reference.raw.get("dtype"))
    if kind is not None:
        config.dtype = kind
    with foreign_errors(reference.folder / "config.json"):
        config.to_json_string()
    return config


def _msa_config(raw: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    """The field `msa_config` for an adapter. Raises CheckpointError naming what cannot be expressed."""
    config, routing = adapter.config, adapter.config.routing
    refusals = {
        "selection='shared'": routing.selection == "shared",
        "token weights": routing.token_weighted,
        "joint keys": routing.joint,
        "document_mix": routing.document_mix > 0,
        "query_reduce='pooled'": routing.query_reduce == "pooled",
        "biases": any(b is not None for r in adapter.router.layers.values() for b in (r.q_bias, r.k_bias)),
        "documents without numbers": not config.numbered,
        "reading layers other than the routing layers": config.reading.layers != routing.layers,
        "content pooled otherwise than routing keys": config.reading.pooling != routing.pooling,
    }
    for what, refused in refusals.items():
        if refused:
            raise CheckpointError(f"the reference's format cannot express {what} of adapter {config.name}")
    known = config.provenance.get("msa_config")
    msa = dict(known) if isinstance(known, Mapping) else _fresh_msa_config(raw, routing, config.top_k)
    if _reads_as(raw, msa) != routing or msa.get("doc_top_k", msa.get("top_k_docs", 16)) != config.top_k:
        msa = _fresh_msa_config(raw, routing, config.top_k)
    if _reads_as(raw, msa) != routing:
        raise CheckpointError(
            f"the reference's format cannot express the routing of adapter {config.name}: its heads and widths must be "
            "the model's, and scores either cosines or scaled by head_dim ** -0.5"
        )
    return msa


def _fresh_msa_config(raw: Mapping[str, Any], routing: RoutingConfig, top_k: int) -> dict[str, Any]:
    every = routing.layers == tuple(range(raw["num_hidden_layers"]))
    return {
        **_LOSSES,
        "aux_loss_method": EXACT_COSINE if routing.normalize else "INFONCE_DECOUPLE",
        "router_layer_idx": "all" if every else ",".join(map(str, routing.layers)),
        "pooling_kernel_size": routing.pooling,
        "decouple_pooling_mode": "mean",
        "decouple_router": routing.source == "projection",
        "rewrite_position": True,
        "head_reduce_method": routing.head_reduce,
        "query_reduce_method": routing.query_reduce,
        "chunk_reduce_method": routing.chunk_reduce,
        "top_k_docs": top_k,
    }


def _reads_as(raw: Mapping[str, Any], msa: Mapping[str, Any]) -> RoutingConfig | None:
    try:
        return routing_of(raw, msa, None)
    except (MSAError, KeyError, TypeError, ValueError, ArithmeticError):  # `msa` may come from an adapter's provenance
        return None


def _reference_config(raw: Mapping[str, Any], msa: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` as transformers 4 writes it, which is what the reference runs on."""
    fields = {k: v for k, v in raw.items() if k not in ("rope_parameters", "dtype")}
    rope = dict(raw.get("rope_parameters") or {})
    if rope:
        fields["rope_theta"] = rope.pop("rope_theta", 10000.0)
        fields["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    if "dtype" in raw:
        fields["torch_dtype"] = raw["dtype"]
    return {**fields, "model_type": "msa", "architectures": ["MSAForCausalLM"], "msa_config": dict(msa)}


def _check_backbone(model: Path, adapter: Adapter) -> Backbone:
    backbone = Backbone.load(str(model), device="cpu", dtype="bfloat16")
    if backbone.weights_hash() != adapter.config.backbone:
        raise CheckpointError(f"adapter {adapter.config.name} was made for other weights than those in {model}")
    if adapter.lora is not None:
        adapter.lora.check(backbone.model)
    return backbone


def _scalars(adapter: Adapter, msa: Mapping[str, Any]) -> list[_Piece]:
    """The loss's scalar: as it was, or as training starts with it."""
    kept = [name for name in SCALARS if isinstance(adapter.config.provenance.get(name), Mapping)]
    tensors = {name: _scalar(name, adapter.config.provenance[name]) for name in kept}
    if not kept:
        tensors["temperature"] = torch.tensor(float(msa.get("infonce_loss_temp", 0.1)))
    return [_Piece(name, tensor.nbytes, tensor.contiguous) for name, tensor in tensors.items()]


def _scalar(name: str, saved: Mapping[str, Any]) -> Tensor:
    """A scalar as an adapter remembers it, which is somebody's JSON. Raises CheckpointError."""
    kinds = {str(kind): kind for kind in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}
    try:
        return torch.tensor(saved["value"], dtype=kinds[saved["dtype"]]).reshape(saved["shape"])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"the adapter's provenance.{name} is no scalar of a checkpoint: {error!r}") from error


def _updated(piece: _Piece, lora: Lora | None) -> _Piece:
    """The same piece, or the weight that it is after its update."""
    match = _WEIGHT.fullmatch(piece.name)
    update = lora.updates.get((int(match[1]), match[2])) if lora is not None and match is not None else None
    if update is None:
        return piece

    def read() -> Tensor:
        weight = piece.read()
        return (weight.float() + update.up.detach().float() @ update.down.detach().float()).to(weight.dtype)

    return _Piece(piece.name, piece.size, read)


def _pieces(folder: Path) -> list[_Piece]:
    """All tensors of a folder, from the headers."""
    pieces = []
    for file, names in shards(folder).items():
        sizes = _sizes(folder / file)
        for name in names:
            if name not in sizes:
                raise CheckpointError(f"{file} lacks {name}, which {INDEX} says is in it")
            pieces.append(_Piece(name, sizes[name], _reader(folder / file, name)))
    return pieces


def _sizes(file: Path) -> dict[str, int]:
    """Bytes of each tensor in a file, from its header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return {n: e["data_offsets"][1] - e["data_offsets"][0] for n, e in header.items() if n != "__metadata__"}


def _reader(file: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with safe_open(str(file), "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    return read


def _write(pieces: list[_Piece], out: Path, shard_bytes: int) -> None:
    """Write tensors in as many files as it takes, with an index if there are several."""
    groups: list[list[_Piece]] = [[]]
    for piece in sorted(pieces):
        if groups[-1] and sum(p.size for p in groups[-1]) + piece.size > shard_bytes:
            groups.append([])
        groups[-1].append(piece)
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    names = [SINGLE] if len(groups) == 1 else names
    for name, group in zip(names, groups, strict=True):
        save_file({piece.name: piece.read() for piece in group}, str(out / name), metadata={"format": "pt"})
    if len(groups) > 1:
        weight_map = {piece.name: name for name, group in zip(names, groups, strict=True) for piece in group}
        _write_json(out / INDEX, {"metadata": {"total_size": sum(p.size for p in pieces)}, "weight_map": weight_map})


def _copy_companions(source: Path, out: Path) -> None:
    for pattern in (*_COMPANIONS, *_ALSO):
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, out / file.name)


def _new_folder(out: Path) -> Path:
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
