"""A memory under mteb's `SearchProtocol`: its tasks index and search it as they do any retriever, without vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from msa_plugin import __version__
from msa_plugin.bench.command import ADAPTER, MODEL, Command, Voice, Words, aligned, option
from msa_plugin.errors import ConfigError, MissingExtraError
from msa_plugin.memory import LatentMemory

_BATCH = 32  # questions that share forwards
_ID = "corpus_id"


class Mteb(Command):
    """mteb downloads its own tasks.

    Example: msa bench mteb --tasks SciFact,NFCorpus --bank bench-bank
    """

    model: str | None = MODEL
    adapter: Path | None = ADAPTER
    tasks: Words = option(..., "Names of mteb's tasks, by commas.", "--tasks", "-t")
    bank: Path = option("bank", "Folder of the memory bank.", "--bank", "-b", envvar="MSA_BANK")
    namespace: str = option("default", "The only part of the bank this call can see.", "--namespace", "-n")
    lexical: float | None = option(None, "Weight of words beside routing scores; 0: keys alone [the adapter's].")
    titles: float | None = option(None, "How much titles that are named count; 0: not [the adapter's].")
    mentions: float | None = option(None, "How much rare names that are shared count; 0: not [the adapter's].")

    def run(self, out: Voice) -> None:
        """A line for each task, split and subset; mteb's scores, all of them, are the result for programs."""
        beside: dict[str, Any] = self.model_dump(include={"lexical", "titles", "mentions", "namespace"})
        wanted = named_tasks(self.tasks or ())
        rows: list[dict[str, Any]] = []
        with LatentMemory.open(self.bank, model=self.model, adapter=self.adapter, **beside) as memory:
            for task in wanted:
                out.note(f"{task.metadata.name} ...")
                rows += evaluated(MSASearch(memory), task)
        names, scores = ("task", "split", "subset"), ("ndcg_at_10", "recall_at_10")
        body = [[*(row[name] for name in names), *(f"{row[score]:.3f}" for score in scores)] for row in rows]
        out.say(aligned((*names, "nDCG@10", "recall@10"), body))
        out.result(rows)


class MSASearch:
    """`mteb.evaluate(MSASearch(memory), task)`.

    Each task, subset and split has a namespace of its own within the memory's, so that one bank serves many; a corpus
    that is there already is not encoded again, and what is no longer in it is deleted. Passages without text stay out.
    Where mteb names candidates (reranking), only these are ranked. Questions longer than a window keep their beginning.
    """

    def __init__(self, memory: LatentMemory, *, batch: int = _BATCH) -> None:
        """`memory` stays the caller's to close. Raises MissingExtraError."""
        self.memory, self.batch = memory, batch
        self._mteb = _library()
        self._place: LatentMemory | None = None

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes into its results: the adapter's name, the backbone's, and what it is."""
        engine = self.memory.engine
        return self._mteb.models.ModelMeta.create_empty(
            {
                "name": f"msa-plugin/{engine.adapter.config.name}",
                "revision": __version__,
                "framework": ["PyTorch", "Transformers"],
                "n_parameters": sum(p.numel() for p in engine.backbone.model.parameters()),
                "max_tokens": self.memory.config.window,
                "model_type": ["hybrid"] if engine.retriever.signals.weights else ["dense"],
                "use_instructions": False,
                "license": "apache-2.0",
            }
        )

    def index(self, corpus: Iterable[Mapping[str, Any]], **task: Any) -> None:
        """Encode a corpus: rows with `id`, `text` and perhaps `title`. `task` are mteb's keywords."""
        self._place = self._of(task)
        seen: set[str] = set()
        self._place.add(_documents(corpus, seen), on_invalid="skip")
        if gone := [i for i in self._place.ids() if i not in seen]:
            self._place.delete(gone)

    def search(
        self,
        queries: Iterable[Mapping[str, Any]],
        *,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **task: Any,
    ) -> dict[str, dict[str, float]]:
        """Scores of the best `top_k` passages of each query, by the query's id and the passage's."""
        place = self._place or self._of(task)
        asked = {str(row["id"]): self._question(row) for row in queries}
        found: dict[str, dict[str, float]] = {name: {} for name in asked}
        if top_ranked is not None:
            for name, text in asked.items():
                if text and (among := list(top_ranked.get(name, ()))):
                    hits = place.retrieve(text, top_k, filter={_ID: {"$in": among}})
                    found[name] = {hit.id: float(hit.score) for hit in hits}
            return found
        names = iter([name for name, text in asked.items() if text])
        while portion := list(islice(names, self.batch)):
            rows = place.retrieve([asked[name] for name in portion], top_k)
            found.update({n: {h.id: float(h.score) for h in hits} for n, hits in zip(portion, rows, strict=True)})
        return found

    def _of(self, task: Mapping[str, Any]) -> LatentMemory:
        return self.memory.within("mteb", task["task_metadata"].name, task["hf_subset"], task["hf_split"])

    def _question(self, row: Mapping[str, Any]) -> str:
        """A query with its instruction behind it; of a conversation, what was said, one turn a line."""
        text = row["text"]
        if not isinstance(text, str):
            text = "\n".join(turn if isinstance(turn, str) else str(turn["content"]) for turn in text)
        text = f"{text} {row.get('instruction') or ''}".strip()
        while (count := self.memory.count_tokens(text)) > self.memory.config.window // 2:
            text = text[: len(text) * self.memory.config.window // 2 // count]
        return str(text)


def named_tasks(names: Sequence[str]) -> list[Any]:
    """Mteb's own tasks. Raises ConfigError for a name that it does not know, and MissingExtraError."""
    try:
        return list(_library().get_tasks(tasks=list(names)))
    except KeyError as error:
        raise ConfigError(
            f"mteb knows no such task: {error}; see https://embeddings-benchmark.github.io/mteb"
        ) from error


def evaluated(search: MSASearch, task: Any) -> list[dict[str, Any]]:
    """A row for each subset and split of a task, with mteb's scores; its cache of results is not used."""
    result = _library().evaluate(search, task, cache=None, show_progress_bar=False)
    rows = []
    for one in result.task_results:
        for split, scores in ((split, scores) for split, subsets in one.scores.items() for scores in subsets):
            numbers = {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}
            rows.append({"task": one.task_name, "split": split, "subset": scores["hf_subset"], **numbers})
    return rows


def _documents(corpus: Iterable[Mapping[str, Any]], seen: set[str]) -> Iterator[dict[str, Any]]:
    for row in corpus:
        name, text, title = str(row["id"]), row.get("text") or "", row.get("title") or ""
        seen.add(name)
        if text.strip() or title.strip():
            body = {"text": text, "title": title} if text.strip() else {"text": title}
            yield {"id": name, **body, "metadata": {_ID: name}}


def _library() -> Any:
    """The only place that imports mteb."""
    try:
        import mteb
    except ImportError as error:
        raise MissingExtraError('mteb is needed (Python 3.11 or newer): pip install "msa-plugin[mteb]"') from error
    return mteb
