"""Whether a memory knows what it does not know: areas by definition, what is taken away, and what is told."""

import json

import absent_answers as absence
import pytest
import typer
from fakes import save_dataset
from typer.testing import CliRunner

from facade import opened
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.cli.adapters import relevance
from msa_plugin.data.datasets import Dataset, Question, sample_dataset
from msa_plugin.errors import IngestError
from msa_plugin.types import Document
from tiny import judging, save_tiny, tiny_adapter


def small():
    names = ("Anna", "Otto", "Peter", "Maria", "Jan", "Eva", "Karl", "Ida", "Olga", "Fritz", "Emil", "Nora")
    documents = [
        Document(n, f"The mill of {n} stands in Orm and was built by {n} Veld.", f"Mill of {n}") for n in names
    ]
    twin = Document("twin", "It was Anna Veld, says the chronicle of Lisse.", "Chronicle")
    questions = tuple(Question(n, f"Who built the mill of {n}?", (f"{n} Veld",), {n: 1}) for n in names)
    return Dataset("mills", (*documents, twin), questions)


def test_the_area_is_the_chance_of_being_above():
    assert absence.auc([2, 3], [1, 0]) == 1.0
    assert absence.auc([1, 1], [1, 1]) == 0.5
    assert absence.auc([0.9, 0.2], [0.5]) == 0.5
    assert absence.auc([], [1.0]) != absence.auc([], [1.0])  # no number


def test_a_sample_keeps_gold_and_prefers_the_same_articles():
    dataset = small()
    sample = absence.AbsenceSample.of(dataset, questions=2, passages=3)
    gold = {name for q in sample.dataset.questions for name in q.positives}
    kept = {d.id for d in sample.dataset.documents}
    assert len(sample.dataset.questions) == 2 and gold < kept and len(kept) == 3
    with pytest.raises(IngestError, match="names no passage"):
        absence.AbsenceSample.of(Dataset("none", dataset.documents, (Question("q", "Who?"),)), 1, 1)


def test_what_holds_the_answer_is_taken_away_too(tmp_path, backbone):
    sample = absence.AbsenceSample.of(small(), 12, 100)
    [asked] = [q for q in sample.dataset.questions if q.id == "Anna"]
    assert sample.holding(asked) == {"Anna", "twin"}
    with opened(tmp_path, backbone, judging(tiny_adapter(backbone)), lexical=1.0) as memory:
        room = absence.Room(memory, sample)
        ways = {way: {room.names[o] for o in s.ordinals().tolist()} for way, s in room.ways(asked)}
        assert ways["gold"] == ways["answerable"] - {"Anna"} and ways["answer"] == ways["gold"] - {"twin"}
        again = absence.Room(memory, sample)  # nothing is encoded twice
        assert again.ordinals == room.ordinals


def test_rows_say_how_often_it_says_so(tmp_path, backbone):
    sample = absence.AbsenceSample.of(small(), 12, 100)
    with opened(tmp_path, backbone, judging(tiny_adapter(backbone)), lexical=1.0, instruction=None) as memory:
        row = absence.run(absence.Room(memory, sample), answers=2, max_new_tokens=2)
    assert row["auc"]["answer"] > 0.9 and row["below"]["answerable"] == 0.0
    assert row["answers"] == 2 and set(row["says_so"]) == {"answerable", "gold", "answer"}
    assert row["says_so"]["answerable"] == 0.0


def test_relevance_is_fitted_and_measured_from_the_shell(tmp_path, backbone, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command("relevance")(relevance)
    app.callback()(lambda: None)
    save_dataset(tmp_path / "data" / "sample", sample_dataset())
    given = [*save_tiny(tmp_path, backbone), "--data", str(tmp_path / "data")]
    done = CliRunner().invoke(
        app, ["relevance", *given, "--out", "fitted", "--banks", "banks", "--json"], catch_exceptions=False
    )
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    adapter = Adapter.load(tmp_path / "fitted")
    assert adapter.config.relevance is not None and 0 <= adapter.config.relevance.least < 1
    assert told["relevance"] == adapter.config.relevance.model_dump(mode="json")
    assert adapter.config.provenance["relevance"]["plan"]["questions"] == 200
    assert adapter.hash() == tiny_adapter(backbone).hash()  # banks made before stay valid
    [row] = absence.measure(backbone, adapter, data=tmp_path / "data", questions=4, banks="banks")
    assert row["set"] == "sample" and row["questions"] == 4 and 0 <= row["auc"]["gold"] <= 1
