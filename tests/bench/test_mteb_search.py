"""A memory in mteb's own hands: a local task, reranking, conversations, and corpora that change."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

mteb = pytest.importorskip("mteb")

from facade import TOPICS, about, opened  # noqa: E402
from msa_plugin.bench.mteb_search import MSASearch, evaluated, named_tasks  # noqa: E402
from msa_plugin.cli import main  # noqa: E402
from msa_plugin.data.datasets import Dataset, Question  # noqa: E402
from msa_plugin.errors import ConfigError  # noqa: E402
from msa_plugin.types import Document  # noqa: E402
from tiny import save_tiny, tiny_backbone  # noqa: E402


def topics_set():
    documents = tuple(Document(t, about(t), t[:3]) for t in TOPICS)
    questions = tuple(Question(f"q-{t}", f"{t} {t}", positives={t: 1}) for t in TOPICS)
    return Dataset("Topics", documents, questions)


def local_task(dataset):
    """A data set as a retrieval task of mteb's, which downloads its own."""
    from datasets import Dataset as Table

    split = {
        "corpus": Table.from_list([{"id": d.id, "title": d.title, "text": d.text} for d in dataset.documents]),
        "queries": Table.from_list([{"id": q.id, "text": q.text} for q in dataset.questions]),
        "relevant_docs": {q.id: dict(q.positives) for q in dataset.questions},
        "top_ranked": None,
    }
    optional = ("date", "domains", "task_subtypes", "license", "annotations_creators", "dialect", "sample_creation")
    described = mteb.TaskMetadata(
        name=dataset.name,
        description=f"{dataset.name}",
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        dataset={"path": dataset.name, "revision": "local"},
        reference=None,
        bibtex_citation=None,
        main_score="ndcg_at_10",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        **dict.fromkeys(optional),
    )

    class LocalTask(mteb.abstasks.AbsTaskRetrieval):
        metadata = described

        def load_data(self, *arguments, **options):
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return LocalTask()


@pytest.fixture
def search(tmp_path, backbone):
    with opened(tmp_path, backbone, lexical=1.0, titles=0.4) as memory:
        yield MSASearch(memory, batch=3)


def task(name="T"):
    return {"task_metadata": SimpleNamespace(name=name), "hf_subset": "default", "hf_split": "test"}


def test_it_is_what_mteb_asks_for(search):
    from mteb.models import SearchProtocol

    assert isinstance(search, SearchProtocol)
    assert search.mteb_model_meta.name == "msa-plugin/tiny" and search.mteb_model_meta.n_parameters > 1000


def test_mteb_evaluates_a_local_task(search):
    [row] = evaluated(search, local_task(topics_set()))
    assert (row["task"], row["split"], row["subset"]) == ("Topics", "test", "default")
    place = search.memory.within("mteb", "Topics", "default", "test")
    first = [hits[0].id for hits in place.retrieve([f"{t} {t}" for t in TOPICS], 1)]
    right = sum(found == topic for found, topic in zip(first, TOPICS, strict=True)) / len(TOPICS)
    assert row["recall_at_1"] == pytest.approx(right, abs=1e-4)
    assert row["ndcg_at_10"] >= right > 0.5


def test_a_corpus_may_change_and_tasks_are_apart(search):
    rows = [{"id": 1, "text": about("glacier"), "title": None}, {"id": "2", "text": " ", "title": "Violin"}]
    search.index([*rows, {"id": "3", "text": "", "title": ""}], **task())
    assert set(search.search([{"id": 7, "text": "glacier"}], top_k=10, **task())["7"]) == {"1", "2"}
    search.index(rows[:1], **task())
    assert set(search.search([{"id": "q", "text": "violin"}], top_k=10, **task())["q"]) == {"1"}
    search.index([{"id": "other", "text": about("violin")}], **task("Another"))
    assert set(search.search([{"id": "q", "text": "violin"}], top_k=10, **task("Another"))["q"]) == {"other"}


def test_candidates_conversations_and_odd_questions(search):
    search.index([{"id": t, "text": about(t)} for t in TOPICS], **task())
    asked = [
        {"id": "a", "text": "violin"},
        {
            "id": "b",
            "text": ["What of the", {"role": "user", "content": "glacier"}],
            "instruction": "Find it.",
        },
        {"id": "blank", "text": " "},
        {"id": "long", "text": "saffron " * 3000},
    ]
    among = {"a": ["glacier", "meteor", "not there"], "b": ["glacier"], "long": []}
    found = search.search(asked, top_k=5, top_ranked=among, **task())
    assert {name: set(scores) for name, scores in found.items()} == {
        "a": {"glacier", "meteor"}, "b": {"glacier"}, "blank": set(), "long": set()
    }  # fmt: skip
    found = search.search(asked, top_k=2, **task())
    assert [len(scores) for scores in found.values()] == [2, 2, 0, 2]
    assert max(found["b"], key=found["b"].get) == "glacier"


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("msa_plugin.bench.mteb_search.named_tasks", lambda names: [local_task(topics_set())])
    monkeypatch.setenv("MSA_CACHE", str(tmp_path / "cache"))
    where = ["--bank", tmp_path / "bank", *save_tiny(tmp_path, tiny_backbone())]
    monkeypatch.setattr(sys, "argv", [*map(str, ["msa", "bench", "mteb", "--tasks", "Topics", *where, "--json"])])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    [row] = json.loads(capsys.readouterr().out)
    assert row["ndcg_at_10"] > 0.5 and row["task"] == "Topics"


def test_names_that_mteb_does_not_know():
    with pytest.raises(ConfigError, match="no such task"):
        named_tasks(["NoSuchTask"])
    assert [task.metadata.name for task in named_tasks(["SciFact"])] == ["SciFact"]
