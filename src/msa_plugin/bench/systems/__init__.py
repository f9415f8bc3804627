"""The systems that are compared, by name: MSA, lexical and dense search, their fusions, iterative RAG, and controls.

Names are described in `NAMES` and read as `names` says. Every call of `create` makes systems of its own. What a system
indexes is cached in the workspace, by content, and libraries that are not installed are missed when it is created.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from msa_plugin.bench.base import Answers, System, Workspace
from msa_plugin.bench.systems.common import FoundInRounds, Options
from msa_plugin.bench.systems.dense import BackboneEmbedder, Dense, EmbeddingModel
from msa_plugin.bench.systems.iterative import Decomposed, Iterative
from msa_plugin.bench.systems.lexical import Bm25
from msa_plugin.bench.systems.memory import Interleaved, Msa
from msa_plugin.bench.systems.plain import ClosedBook, FullContext, Gold, Lures
from msa_plugin.bench.systems.rank_fusion import Fusion
from msa_plugin.bench.systems.rerank import Reranked
from msa_plugin.bench.systems.score_fusion import WithMentions, WithTitles, WithWords
from msa_plugin.bench.systems.system_spec import MEMORIES, NAMES, SUFFIXES, Parsed, parse, parse_one

__all__ = ["NAMES", "SUFFIXES", "FoundInRounds", "Options", "create", "describe", "parse"]

_SIMPLE: dict[str, Callable[[str, Workspace, Options], System | Answers]] = {
    "msa": Msa,
    "msa-interleave": Interleaved,
    "bm25": Bm25,
    "full-context": FullContext,
    "closed-book": ClosedBook,
    "gold": Gold,
    "lures": Lures,
}


def create(name: str, workspace: Workspace, options: Options | None = None) -> System | Answers:
    """A new system; `prepare` it before it finds anything.

    Raises ConfigError for a name that cannot be read and MissingExtraError when a package is not installed.
    """
    return _build(name, parse_one(name), workspace, options or Options())


def describe() -> str:
    """All names with what they are, one a line, for help texts."""
    width = max(map(len, (*NAMES, *SUFFIXES)))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in (*NAMES.items(), *SUFFIXES.items()))


def _build(name: str, parsed: Parsed, workspace: Workspace, options: Options) -> System | Answers:
    if parsed.reranks:
        *inner, outer = parsed.reranks
        base = _base(replace(parsed, reranks=tuple(inner)), workspace, options)
        return Reranked(name, workspace, base, outer.depth or options.rerank_depth, outer.model)
    if parsed.prefilter is not None:
        options = replace(options, prefilter=parsed.prefilter)
    if parsed.mentions and parsed.kind not in MEMORIES:
        return WithMentions(name, workspace, _base(replace(parsed, mentions=0.0), workspace, options), parsed.mentions)
    if parsed.titles and parsed.kind not in MEMORIES:
        return WithTitles(name, workspace, _base(replace(parsed, titles=0.0), workspace, options), parsed.titles)
    if parsed.lexical and parsed.kind not in MEMORIES:
        base = _base(replace(parsed, lexical=0.0), workspace, options)
        return WithWords(name, workspace, base, parsed.lexical, Bm25("bm25", workspace, options))
    if parsed.kind in MEMORIES:
        options = replace(options, lexical=parsed.lexical, titles=parsed.titles, mentions=parsed.mentions)
    if parsed.kind in _SIMPLE:
        return _SIMPLE[parsed.kind](name, workspace, options)
    return _build_finding(name, parsed, workspace, options)


def _build_finding(name: str, parsed: Parsed, workspace: Workspace, options: Options) -> System:
    if parsed.kind == "dense":
        return EmbeddingModel(name, workspace, parsed.argument)
    if parsed.kind == "dense-same-backbone":
        return Dense(name, workspace, BackboneEmbedder(workspace.engine))
    bases = [_base(base, workspace, options) for base in parsed.bases]
    if parsed.kind in ("iterative", "decompose"):
        kind = Iterative if parsed.kind == "iterative" else Decomposed
        return kind(name, workspace, bases[0], options)
    return Fusion(name, workspace, bases, options)


def _base(parsed: Parsed, workspace: Workspace, options: Options) -> System:
    """A system that another one is made of; `names` has made sure that it finds."""
    built = _build(parsed.kind, parsed, workspace, options)
    assert isinstance(built, System)
    return built
