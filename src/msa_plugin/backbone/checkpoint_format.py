"""What a checkpoint in the reference's format says (golden spec section 1), checked before any weight is read.

`config.json` holds Qwen3's fields and a dict `msa_config`; router projections and a scalar travel with the weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open
from transformers import Qwen3Config

from msa_plugin.config import ChunkReduce, HeadReduce, RoutingConfig
from msa_plugin.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

EXACT_COSINE = "INFONCE"
SCALARS = ("temperature", "b")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Fields of an adapter that change no number of the model, kept beside the checkpoint; the reference ignores the file.
EXTRA, EXTRA_FIELDS = "msa_plugin.json", ("name", "abilities", "id_width", "provenance", "measured")
MARKERS = ("<|im_start|>", "<|im_end|>", "<|object_ref_end|>")
DEFAULT_TOP_K = 16
_METHODS = (EXACT_COSINE, "INFONCE_DECOUPLE", "INFONCE_FOCAL", "INFONCE_DECOUPLE_FOCAL", "BCE")
_REDUCTIONS: dict[str, tuple[str, ...]] = {
    "head_reduce_method": get_args(HeadReduce),
    "query_reduce_method": ("max", "mean", "last"),
    "chunk_reduce_method": get_args(ChunkReduce),
}
_NEEDED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "intermediate_size",
)
_LARGEST, _DEEPEST = 1 << 24, 1 << 12  # beyond any model; lists of layers are made before a header is read
_OWN = {"msa_config", "model_type", "architectures", "transformers_version", "torch_dtype", "dtype"}
# Names of code to run in the model's stead.
_OWN |= {"auto_map", "attn_implementation", "_attn_implementation", "experts_implementation"}


@dataclass(frozen=True)
class Reference:
    """A checkpoint's description: its folder, `config.json`, the Qwen3 part of that, and how it routes."""

    folder: Path
    raw: Mapping[str, Any]
    model: Qwen3Config
    routing: RoutingConfig
    top_k: int

    @property
    def msa(self) -> Mapping[str, Any]:
        """The field `msa_config`."""
        found: Mapping[str, Any] = self.raw["msa_config"]
        return found


@contextmanager
def foreign_errors(file: Path) -> Iterator[None]:
    """Turns what transformers raises over a damaged file, which may be almost anything, into CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{file}: {error!r}") from error


def is_reference(raw: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a checkpoint in the reference's format."""
    return raw.get("model_type") == "msa" or "msa_config" in raw


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's `config.json`. Raises CheckpointError."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read a checkpoint from {folder}: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{folder / 'config.json'} is not a JSON object")
    return raw


def describe_reference(folder: Path, cosine: bool | None = None) -> Reference:
    """Check and normalise a checkpoint's configuration. Raises CheckpointError naming the field that is wrong.

    `cosine` decides whether routing scores are cosines. None follows the reference's inference code, which normalises
    only when `aux_loss_method` is exactly INFONCE (golden spec 3.4), and warns where its training script did not.
    """
    raw = read_config(folder)
    if not isinstance(raw.get("msa_config"), dict):
        raise CheckpointError(f"{folder / 'config.json'}: field 'msa_config' is missing or not an object")
    for field in (*_NEEDED, *(["head_dim"] if raw.get("head_dim") is not None else [])):
        _whole(raw, field, "")
    if raw["num_hidden_layers"] > _DEEPEST:
        raise CheckpointError(f"config.json: num_hidden_layers is {raw['num_hidden_layers']}, more than {_DEEPEST}")
    msa = raw["msa_config"]
    routing = routing_of(raw, msa, cosine)
    key = "doc_top_k" if "doc_top_k" in msa else "top_k_docs"
    top_k = _whole(msa, key, "msa_config.") if key in msa else DEFAULT_TOP_K
    return Reference(folder, raw, _qwen3(raw, folder), routing, top_k)


def routing_of(raw: Mapping[str, Any], msa: Mapping[str, Any], cosine: bool | None) -> RoutingConfig:
    """`RoutingConfig` of a reference config; `raw` is config.json, `msa` its `msa_config`. Raises CheckpointError."""
    head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    decoupled = msa.get("decouple_router", True)
    if not isinstance(decoupled, bool):
        raise CheckpointError(f"msa_config.decouple_router must be true or false, not {decoupled!r}")
    for field, known in _REDUCTIONS.items():
        if field in msa and msa[field] not in known:
            raise CheckpointError(f"msa_config.{field} is {msa[field]!r}; known: {', '.join(known)}")
    normalize = _normalizes(msa, cosine)
    try:
        return RoutingConfig(
            layers=_layers(msa, raw["num_hidden_layers"]),
            heads=raw["num_attention_heads"],
            kv_heads=raw["num_key_value_heads"],
            head_dim=head_dim,
            pooling=_pooling(raw, msa),
            source="projection" if decoupled else "attention",
            head_reduce=msa.get("head_reduce_method", "mean"),
            query_reduce=msa.get("query_reduce_method", "max"),
            chunk_reduce=msa.get("chunk_reduce_method", "max"),
            normalize=normalize,
            scale=1.0 if decoupled and normalize else head_dim**-0.5,
        )
    except ConfigError as error:
        raise CheckpointError(f"config.json: {error}") from error


def _normalizes(msa: Mapping[str, Any], cosine: bool | None) -> bool:
    method = msa.get("aux_loss_method", EXACT_COSINE)
    if method not in _METHODS:
        raise CheckpointError(f"msa_config.aux_loss_method is {method!r}; known: {', '.join(_METHODS)}")
    if cosine is not None:
        return cosine
    if method != EXACT_COSINE and EXACT_COSINE in method:
        logger.warning(
            "aux_loss_method is %s: training compared cosines, but the reference's inference code does not normalise "
            "under that name, and neither does this unless told to; pass cosine=True for the scores of training",
            method,
        )
    return bool(method == EXACT_COSINE)


def _layers(msa: Mapping[str, Any], depth: int) -> tuple[int, ...]:
    listed = msa.get("router_layer_idx")
    if listed is None:
        raise CheckpointError("msa_config.router_layer_idx is missing")
    if listed == "all":
        return tuple(range(depth))
    parts = listed.split(",") if isinstance(listed, str) else listed if isinstance(listed, list) else [listed]
    try:
        indices = [int(part) for part in parts if not isinstance(part, float)]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"msa_config.router_layer_idx must list layers or say 'all', not {listed!r}") from error
    wrong = [i for i in indices if not 0 <= i < depth]
    if wrong or not indices or len(indices) != len(parts):
        problem = f"names layer {wrong[0]}, but the model has {depth} layers" if wrong else "must list whole numbers"
        raise CheckpointError(f"msa_config.router_layer_idx {problem} ({listed!r})")
    if len(set(indices)) != len(indices):
        raise CheckpointError(f"msa_config.router_layer_idx names a layer twice: {listed!r}")
    return tuple(sorted(indices))


def _pooling(raw: Mapping[str, Any], msa: Mapping[str, Any]) -> int:
    pooling = _whole(msa, "pooling_kernel_size", "msa_config.")
    # The reference keeps the size in several places that have to agree by hand (golden spec 9.1).
    for where, place in (("", raw), ("memory_config.", raw.get("memory_config")), ("msa_config.", msa)):
        for name in ("pooling_kernel_size", "kernel_size", "block_pooling_size"):
            if isinstance(place, dict) and name in place and place[name] != pooling:
                raise CheckpointError(f"{where}{name} is {place[name]!r}, msa_config.pooling_kernel_size is {pooling}")
    mode = msa.get("decouple_pooling_mode", "mean")
    if mode != "mean":
        raise CheckpointError(f"msa_config.decouple_pooling_mode is {mode!r}; chunks are pooled by their mean only")
    longest = raw.get("max_position_embeddings")
    if isinstance(longest, int) and pooling > longest:
        raise CheckpointError(
            f"msa_config.pooling_kernel_size is {pooling}, more than max_position_embeddings, {longest}"
        )
    return pooling


def _whole(place: Mapping[str, Any], field: str, where: str) -> int:
    value = place.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        raise CheckpointError(f"config.json: {where}{field} must be a whole number above 0, not {value!r:.100}")
    return value


def _qwen3(raw: Mapping[str, Any], folder: Path) -> Qwen3Config:
    fields = {k: v for k, v in raw.items() if k not in _OWN}
    # transformers 4 wrote "no sliding window" as false; 5 accepts only a number or nothing.
    fields["sliding_window"] = fields.get("sliding_window") or None
    with foreign_errors(folder / "config.json"):
        if "rope_parameters" not in fields:
            scaling = dict(fields.pop("rope_scaling", None) or {})
            kind = scaling.pop("type", scaling.pop("rope_type", "default"))
            fields["rope_parameters"] = {
                "rope_type": kind,
                "rope_theta": fields.pop("rope_theta", 10000.0),
                **scaling,
            }
        return Qwen3Config(**fields)


def shards(folder: Path) -> dict[str, list[str]]:
    """File names of a checkpoint's weights, each with the tensors to take from it. Raises CheckpointError."""
    if not (folder / INDEX).is_file():
        return {SINGLE: list(shapes(folder / SINGLE))}
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files: dict[str, list[str]] = {}
        for name, file in weight_map.items():
            if Path(file).name != file:
                raise CheckpointError(f"{INDEX}: weight_map[{name!r}] is not a file name: {file!r}")
            files.setdefault(file, []).append(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot read {folder / INDEX}: {error!r}") from error
    return files


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in one file, from its header alone. Raises CheckpointError."""
    try:
        with safe_open(str(file), "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error


def router_names(layer: int) -> tuple[str, str]:
    """Names of a layer's routing projections, queries first."""
    base = f"model.layers.{layer}.self_attn.router"
    return f"{base}_q_proj.0.weight", f"{base}_k_proj.0.weight"


def check_sizes(reference: Reference) -> None:
    """Raises CheckpointError where config.json claims sizes that the files do not have.

    Done before a model is made of these sizes: the files bound what they can be, and what that takes.
    """
    model, depth = reference.model, reference.model.num_hidden_layers
    ends = ("model.embed_tokens.weight", *(() if model.tie_word_embeddings else ("lm_head.weight",)))
    wanted = dict.fromkeys(ends, (model.vocab_size, model.hidden_size))
    for layer in range(depth):
        base = f"model.layers.{layer}"
        wanted[f"{base}.mlp.gate_proj.weight"] = (model.intermediate_size, model.hidden_size)
        for part, heads in (("q", model.num_attention_heads), ("k", model.num_key_value_heads)):
            wanted[f"{base}.self_attn.{part}_proj.weight"] = (heads * model.head_dim, model.hidden_size)
    _compare(reference.folder, wanted, _found(reference.folder, shards(reference.folder)), set())


def _found(folder: Path, files: Mapping[str, list[str]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors to take from each file. Raises CheckpointError for one that is not there."""
    found = {}
    for file, names in files.items():
        inside = shapes(folder / file)
        for name in names:
            if name not in inside:
                raise CheckpointError(f"{file} lacks {name}, which {INDEX} says is in it")
            found[name] = inside[name]
    return found


def _compare(
    folder: Path,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    optional: set[str],
) -> None:
    missing = sorted(set(wanted) - set(found) - optional)
    if missing:
        raise CheckpointError(f"{folder}: tensor {missing[0]} is missing ({len(missing)} in all)")
    for name, shape in wanted.items():
        if name in found and found[name] != shape:
            raise CheckpointError(f"{folder}: tensor {name} has shape {found[name]}, config.json says {shape}")


def check_tensors(reference: Reference, expected: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """Compare all headers with the backbone's `expected` tensors and the routers; returns `shards`.

    Raises CheckpointError naming what is missing, extra or of another shape.
    """
    files = shards(reference.folder)
    found = _found(reference.folder, files)
    routing, hidden = reference.routing, reference.model.hidden_size
    wanted = dict(expected)
    if routing.source == "projection":
        for layer in routing.layers:
            q, k = router_names(layer)
            wanted |= {q: (routing.heads * routing.head_dim, hidden), k: (routing.key_width, hidden)}
    tied = {"lm_head.weight"} if reference.model.tie_word_embeddings else set()
    extra = sorted(set(found) - set(wanted) - tied - set(SCALARS))
    if extra:
        raise CheckpointError(f"{reference.folder}: tensor {extra[0]} is unexpected ({len(extra)} in all)")
    _compare(reference.folder, wanted, found, tied)
    return files


def read_extra(folder: Path) -> dict[str, Any]:
    """What our conversion wrote beside a checkpoint because the format has no field for it. Raises CheckpointError."""
    file = folder / EXTRA
    if not file.is_file():
        return {}
    try:
        extra = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if not isinstance(extra, dict) or not set(extra) <= set(EXTRA_FIELDS):
        raise CheckpointError(f"{file} must be an object with no other fields than {', '.join(EXTRA_FIELDS)}")
    return extra


def check_markers(tokenizer: Any, folder: Path) -> None:
    """Raises CheckpointError for a tokenizer that lacks a marker, or that reads one in plain text as the marker."""
    for marker in MARKERS:
        index = tokenizer.convert_tokens_to_ids(marker)
        if index is None or index == tokenizer.unk_token_id:
            raise CheckpointError(f"{folder}: the tokenizer has no marker token {marker}")
        if index not in tokenizer.all_special_ids:
            raise CheckpointError(f"{folder}: the tokenizer has {marker}, but not as a special token")
