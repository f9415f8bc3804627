"""Workspaces on the tiny backbone, an embedding model that needs no download, and a system whose ranking is given."""

from __future__ import annotations

from facade import TOPICS, topics
from msa_plugin.bench.base import Cost, Found, Workspace
from msa_plugin.bench.result import Scored
from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Document
from tiny import tiny_adapter, tiny_tokenizer


def toy_dataset():
    """A passage and a question on each topic."""
    documents = tuple(Document.of({k: d[k] for k in ("id", "text", "title")}) for d in topics())
    questions = tuple(Question(f"q-{t}", f"What is a {t}?", (t,), {t: 1}) for t in TOPICS)
    return Dataset("toy", documents, questions)


def workspace(path, backbone, dataset=None, **settings):
    """A workspace in `path` whose memory holds the data set; the test closes the memory, or leaves it to the end."""
    dataset = dataset or toy_dataset()
    given = {"instruction": "Be brief.", "context_tokens": 300, **settings}
    memory = LatentMemory.open(path / "bank", model=backbone, adapter=tiny_adapter(backbone), **given)
    seconds = memory.add(list(dataset.documents), on_progress=lambda _: None).seconds
    return Workspace(dataset, memory, path / "cache", {"max_new_tokens": 3}, fill=lambda: seconds)


def static_model(folder, seed=0):
    """A folder with a sentence-transformers model of random static byte vectors."""
    import torch
    from sentence_transformers import SentenceTransformer

    try:
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    except ImportError:  # before version 6
        from sentence_transformers.models import StaticEmbedding

    tokenizer = tiny_tokenizer()
    vectors = torch.randn(len(tokenizer), 32, generator=torch.Generator().manual_seed(seed)).numpy()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=vectors)], device="cpu")
    model.save_pretrained(str(folder), safe_serialization=True)
    return str(folder)


class Given:
    """A system that ranks as `rank(query)` says and remembers what it was asked."""

    def __init__(self, rank, notes=()):
        self.name, self.rank, self.notes = "given", rank, tuple(notes)
        self.asked = []
        self.closed = False

    def prepare(self):
        return Cost(1.0, 10, 1000, 100)

    def find(self, questions, k):
        self.asked += questions
        rankings = [tuple(Scored(i, 10.0 - n) for n, i in enumerate(self.rank(q)[:k])) for q in questions]
        seconds = {"encode": 0.25, "search": 0.5}
        return [Found(r, seconds, (q,)) for q, r in zip(questions, rankings, strict=True)]

    def close(self):
        self.closed = True


def ids(found):
    """The ranking without scores."""
    return [hit.id for hit in found.ranking]
