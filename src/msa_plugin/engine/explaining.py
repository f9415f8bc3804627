"""Why a document ranks where it does: the ranking once more, with all that it weighed kept."""

from __future__ import annotations

from collections.abc import Sequence

from msa_plugin.bank.handle import Selected
from msa_plugin.engine.engine import Engine
from msa_plugin.retrieval.ranking import Ranked
from msa_plugin.types import ChunkScore, Explanation, NamedBy


def explain(engine: Engine, question: str, ordinal: int, selection: Selected) -> Explanation:
    """Take apart how one document of a selection is ranked for a question."""
    ranking = engine.rank([question], engine.top_k, selection, also=[ordinal])
    [considered], [chunks] = ranking.rows, ranking.chunks
    [found] = [r for r in considered if r.ordinal == ordinal]
    linking = [link.by for link in found.links if link.by is not None]
    stored = {d.ordinal: d for d in engine.bank.documents([ordinal, *linking])}
    document = stored[ordinal]
    [scores] = chunks([ordinal])
    spans = [engine.passages.chunk(document, number) for number in range(len(scores))]
    lexical = engine.retriever.signals.lexical
    words = {} if lexical is None else lexical.parts(question, selection, ordinal)
    naming = [(None if link.by is None else stored[link.by], link) for link in found.links if link.added]
    return Explanation(
        question=question,
        id=document.id,
        title=document.title,
        text=document.text,
        score=found.score,
        signals=found.signals,
        layers=found.layer_scores,
        chunks=tuple(ChunkScore(*span, float(score)) for span, score in zip(spans, scores, strict=True)),
        words=dict(sorted(words.items(), key=lambda item: -item[1])),
        named=tuple(
            NamedBy(by.id if by else None, by.title if by else "", link.added, link.shared) for by, link in naming
        ),
        place=considered.index(found) + 1,
        places=_places(found, considered),
        considered=len(considered),
        best=considered[0].score,
        relevance=found.relevance,
        namespace=document.namespace,
    )


def _places(found: Ranked, considered: Sequence[Ranked]) -> dict[str, int]:
    """The document's rank by each signal alone, of those that it has."""
    each = [ranked.signals for ranked in considered]
    return {name: 1 + sum(one.get(name, 0.0) > mine for one in each) for name, mine in found.signals.items()}
