"""The systems that are compared, by name: MSA, lexical and dense search, their fusions, iterative RAG, and controls.

Names are described in `NAMES` and read as `names` says. Every call of `create` makes systems of its own. What a system
indexes is cached in the workspace, by content, and libraries that are not installed are missed when it is created.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from msa_plugin.bench.base import Answers, System, Workspace
from msa_plugin.bench.systems.common import Options
from msa_plugin.bench.systems.dense import Dense, EmbeddingModel
from msa_plugin.bench.systems.iterative import Decomposed, Iterative
from msa_plugin.bench.systems.lexical import Bm25
from msa_plugin.bench.systems.memory import Interleaved, Msa
from msa_plugin.bench.systems.plain import ClosedBook, FullContext, Gold, Lures
from msa_plugin.bench.systems.rank_fusion import Fusion
from msa_plugin.bench.systems.rerank import RERANKED, Reranked
from msa_plugin.bench.systems.score_fusion import WithMentions, WithTitles, WithWords
from msa_plugin.bench.systems.system_spec import NAMES, Parsed, parse, parse_one
from msa_plugin.config import BesideConfig
from msa_plugin.embedding.backbone import BackboneEmbedder

__all__ = ["NAMES", "Options", "create", "parse"]

_SIMPLE: dict[str, Callable[[str, Workspace, Options], System | Answers]] = {
    "bm25": Bm25,
    "full-context": FullContext,
    "closed-book": ClosedBook,
    "gold": Gold,
    "lures": Lures,
}
_MEMORIES = {"msa": Msa, "msa-interleave": Interleaved}
_ADDED: dict[str, Callable[[str, Workspace, System, float], System]] = {  # the outermost first
    "mentions": WithMentions,
    "titles": WithTitles,
    "lexical": WithWords,
}


def create(name: str, workspace: Workspace, options: Options | None = None) -> System | Answers:
    """A new system; `prepare` it before it finds anything.

    Raises ConfigError for a name that cannot be read and MissingExtraError when a package is not installed.
    """
    return _build(name, parse_one(name), workspace, options or Options())


def _build(name: str, spec: Parsed, workspace: Workspace, options: Options) -> System | Answers:
    if spec.reranks:
        *inner, outer = spec.reranks
        base = _base(replace(spec, reranks=tuple(inner)), workspace, options)
        return Reranked(name, workspace, base, outer.depth or RERANKED, outer.model)
    if spec.kind in _MEMORIES:
        weights = BesideConfig(lexical=spec.lexical, titles=spec.titles, mentions=spec.mentions)
        return _MEMORIES[spec.kind](name, workspace, options, weights, spec.prefilter)
    for kind, added in _ADDED.items():
        if weight := getattr(spec, kind):
            without: dict[str, Any] = {kind: 0.0}
            return added(name, workspace, _base(replace(spec, **without), workspace, options), weight)
    if spec.kind in _SIMPLE:
        return _SIMPLE[spec.kind](name, workspace, options)
    if spec.kind == "dense":
        return EmbeddingModel(name, workspace, spec.argument)
    if spec.kind == "dense-same-backbone":
        return Dense(name, workspace, BackboneEmbedder(workspace.engine))
    kinds = {"iterative": Iterative, "decompose": Decomposed}
    bases = [_base(base, workspace, options) for base in spec.bases]
    return kinds.get(spec.kind, Fusion)(name, workspace, bases, options)


def _base(parsed: Parsed, workspace: Workspace, options: Options) -> System:
    """A system that another one is made of; `names` has made sure that it finds."""
    built = _build(parsed.kind, parsed, workspace, options)
    assert isinstance(built, System)
    return built
