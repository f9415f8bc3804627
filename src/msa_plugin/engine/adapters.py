"""Which adapter a backbone gets: the one named, the one shipped for it, or the one calibrated here for it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.cache import cache_dir, is_kept
from msa_plugin.errors import AdapterError


def calibrated_path(backbone: Backbone) -> Path:
    """Where `msa calibrate` keeps a backbone's adapter when it is not told otherwise."""
    return cache_dir() / "adapters" / backbone.weights_hash()


def shipped_adapters() -> list[Path]:
    """Adapters inside this package."""
    root = Path(str(resources.files("msa_plugin"))) / "adapters"
    return sorted(p for p in root.iterdir() if (p / "adapter.json").is_file()) if root.is_dir() else []


def find_adapter(backbone: Backbone, given: str | Path | Adapter | None) -> Adapter:
    """The adapter for `backbone`: the one given, brought along, made here or shipped.

    Raises AdapterError when there is none, or when it is another backbone's.
    """
    if given is not None:
        return _checked(given if isinstance(given, Adapter) else Adapter.load(Path(given)), backbone)
    if backbone.own_adapter is not None:
        return backbone.own_adapter
    weights = backbone.weights_hash()
    for path in (calibrated_path(backbone), *shipped_adapters()):
        if is_kept(path / "adapter.json"):
            adapter = Adapter.load(path)
            if adapter.config.backbone == weights:
                return _checked(adapter, backbone)
    raise AdapterError(
        f"there is no adapter for {backbone.name}; make one in minutes from plain text, without training: "
        f"msa calibrate FILES... --model {backbone.name}"
    )


def _checked(adapter: Adapter, backbone: Backbone) -> Adapter:
    for what, mine, theirs in (
        ("weights", backbone.weights_hash(), adapter.config.backbone),
        ("tokenizer", backbone.tokenizer_hash(), adapter.config.tokenizer),
    ):
        if mine != theirs:
            raise AdapterError(
                f"adapter {adapter.config.name} was made for other {what} ({theirs}) than those of {backbone.name} "
                f"({mine}); calibrate one with: msa calibrate FILES... --model ..."
            )
    _check_fits(adapter, backbone)
    return adapter


def _check_fits(adapter: Adapter, backbone: Backbone) -> None:
    """Raises AdapterError for an adapter that speaks of layers, heads or tokens that the backbone does not have."""
    routing, spec, weights = adapter.config.routing, backbone.spec, adapter.router.token_weights
    layers = {*routing.layers, *adapter.config.reading.layers}
    heads = (routing.heads, routing.kv_heads, routing.head_dim)
    problem = ""
    if not layers <= set(range(spec.layers)):
        problem = f"layers {sorted(layers)}, of which the model has {spec.layers}"
    elif weights is not None and (weights.ndim != 1 or len(weights) < spec.vocab):
        problem = f"token weights of shape {tuple(weights.shape)} for {spec.vocab} tokens"
    elif routing.source == "attention" and heads != (spec.heads, spec.kv_heads, spec.head_dim):
        problem = f"{routing.heads} heads of {routing.head_dim} where the model has {spec.heads} of {spec.head_dim}"
    if problem:
        raise AdapterError(f"adapter {adapter.config.name} names {problem}; it does not fit {backbone.name}")
    if adapter.lora is not None:
        adapter.lora.check(backbone.model)
