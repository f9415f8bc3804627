"""What the tests of the facade share: texts, a memory on the tiny model, and a count of the backbone's forwards."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.handle import Selected
from msa_plugin.config import BesideConfig
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter

TOPICS = ("lighthouse", "beekeeping", "glacier", "violin", "harbour", "compiler", "saffron", "meteor")
PER_LAYER: dict[str, Any] = {
    "selection": "per_layer",
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "query_reduce": "max",
    "layers": (2, 3),
}
# Routers and ways of reading: what changes in the adapter, and the settings of the memory.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({}, {"reading": "text"}),
    "kv": ({}, {"reading": "kv"}),
    "latent": ({"read_latent": True}, {}),
    "per layer, text": (PER_LAYER, {"reading": "text"}),
    "per layer, latent": ({**PER_LAYER, "read_latent": True}, {}),
    "attention, text": ({**PER_LAYER, "source": "attention"}, {"reading": "text"}),
    "attention, latent": ({**PER_LAYER, "source": "attention", "read_latent": True}, {}),
}
# Three documents of which each names the next, and a question that needs the last.
CHAIN = [
    {"id": "mill", "title": "Kestrel Mill", "text": "The mill stands on the Orm and was built by Anna Veld."},
    {"id": "veld", "title": "Anna Veld (builder)", "text": "She was born in Port Arno and died at sea."},
    {"id": "arno", "title": "Port Arno", "text": "A town of fishermen."},
]
CHAIN_QUESTION = "where was the builder of kestrel mill born"


def about(topic: str) -> str:
    """A short text that says its topic often enough to be told from the others."""
    return f"{topic.title()}: {topic} {topic}, a text on {topic} and nothing but {topic}."


def topics(count: int = len(TOPICS)) -> list[dict[str, Any]]:
    """Documents `count` of which have one topic each; metadata says their number and whether it is even."""
    return [
        {"id": t, "text": about(t), "title": t[:3], "metadata": {"number": n, "even": n % 2 == 0}}
        for n, t in enumerate(TOPICS[:count])
    ]


def manual(*chapters: str) -> str:
    """A long document with a chapter on each topic."""
    return "\n\n".join(f"## On the {topic}\n\n{about(topic)} {about(topic)}" for topic in chapters)


def opened(path: Path, backbone: Backbone, adapter: Adapter | None = None, **settings: Any) -> LatentMemory:
    """A memory in `path`/bank on a tiny backbone, with a short instruction for short prompts unless one is given."""
    settings.setdefault("instruction", "Be brief.")
    return LatentMemory.open(path / "bank", model=backbone, adapter=adapter or tiny_adapter(backbone), **settings)


def count_runs(monkeypatch: Any, also: Callable[[], None] = lambda: None) -> list[int]:
    """Tokens of every forward of any backbone from now on, one number a forward; `also` is called before each."""
    seen: list[int] = []
    run = Backbone.run

    def counted(self: Backbone, state: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        also()
        seen.append(ids.numel())
        return run(self, state, ids, *args, **kwargs)

    monkeypatch.setattr(Backbone, "run", counted)
    return seen


def saying(monkeypatch: Any, backbone: Backbone, text: str) -> None:
    """From now on every answer is `text`, whatever the model computes: its tokens in turn, then the end for good."""
    said = [*backbone.tokenize(text), next(iter(backbone.end_ids))]
    tokens = chain(said, repeat(said[-1]))
    monkeypatch.setattr(
        "msa_plugin.answering.decoding.TokenSampler.pick", lambda _, logits: [next(tokens)] * len(logits)
    )


def use_beside(memory: LatentMemory, weights: BesideConfig) -> None:
    """From now on this handle ranks with other weights of words and names."""
    memory._engine = memory.engine.variant(weights)


def use_prefilter(memory: LatentMemory, spec: str | None, folder: Path, selection: Selected) -> None:
    """From now on this handle ranks among the candidates of an index over `selection`, kept in `folder`; None: all."""
    index = None if spec is None else memory.engine.search.prefilter(spec, folder, selection)
    memory._engine = memory.engine.variant(prefilter=index)
