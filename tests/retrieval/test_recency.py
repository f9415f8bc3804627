"""Recency beside routing keys: the arithmetic is as documented, off it changes nothing, and how old a document is."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from facade import PER_LAYER, about, opened
from msa_plugin.bank.repair import repair_bank
from msa_plugin.bank.schema import CATALOG_FILE, connect
from msa_plugin.config import RelevanceConfig, RelevanceWeights
from msa_plugin.errors import ConfigError, InvalidQueryError
from msa_plugin.retrieval.recency import SHARE
from tiny import tiny_adapter

NOW = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
AGES = {"today": 0, "week": 7, "month": 28, "year": 365}


def days_ago(days):
    return (NOW - timedelta(days=days)).isoformat()


def filled(memory):
    memory.add([{"id": n, "text": about("violin") + f" {n}", "valid_from": days_ago(d)} for n, d in AGES.items()])
    memory.add([{"id": f"x{i}", "text": about("glacier") + f" {i}", "valid_from": days_ago(i)} for i in range(12)])
    return memory


def scores(memory, k=50, **options):
    return {hit.id: hit.score for hit in memory.retrieve("violin", k, **options)}


def ids(memory, k=50, **options):
    return [hit.id for hit in memory.retrieve("violin", k, **options)]


@pytest.mark.parametrize("beside", [{}, {"lexical": 0.7, "titles": 0.4}])
def test_the_score_is_as_documented(tmp_path, backbone, clock, beside):
    with opened(tmp_path, backbone, **beside) as memory:
        plain, aged = scores(filled(memory)), scores(memory, recency=7)
        best = max(plain.values())
        for name, days in {**AGES, **{f"x{i}": i for i in range(12)}}.items():
            assert aged[name] == pytest.approx(plain[name] + SHARE * max(best, 0.0) * 0.5 ** (days / 7), abs=1e-6)
        assert list(aged.values()) == sorted(aged.values(), reverse=True)
        short = scores(memory, 3, recency=timedelta(days=7))
        assert short == dict(list(aged.items())[:3])  # what k is, and how it is said, changes no score
        explained = memory.explain("violin", "week", recency=7)
        assert explained.signals["recency"] == pytest.approx(SHARE * best / 2, abs=1e-6)
        assert explained.score == pytest.approx(aged["week"]) and explained.place == list(aged).index("week") + 1
        passages = {hit.id for hit in memory.retrieve("violin", 3, recency=7, by="passage")}
        assert passages == set(short)


def test_off_it_changes_nothing(tmp_path, backbone, clock):
    with opened(tmp_path, backbone, lexical=0.7) as memory:
        before = filled(memory).retrieve(["violin", "glacier"], 5)
        assert memory.retrieve(["violin", "glacier"], 5, recency=0) == before
    with opened(tmp_path, backbone, lexical=0.7, recency=7.0) as memory:
        assert memory.retrieve(["violin", "glacier"], 5, recency=0) == before
        aged = memory.retrieve(["violin", "glacier"], 5)
        assert aged != before and aged == memory.retrieve(["violin", "glacier"], 5, recency=timedelta(weeks=1))
        low, high = memory.score_bounds
        assert all(low <= hit.score <= high for row in aged for hit in row)
        answer = memory.ask("violin", max_new_tokens=1, max_rounds=1)
        assert answer.sources[0].id == "today" and answer.sources[0].score == pytest.approx(aged[0][0].score)
        assert answer.trace.beside == {"words": 0.7, "recency": SHARE}


def test_a_newer_one_passes_what_fits_as_well_and_not_what_fits_better(tmp_path, backbone, clock):
    with opened(tmp_path, backbone, lexical=1.0) as memory:
        memory.add([{"id": "home-1", "text": "Ann lives in Lisse.", "valid_from": days_ago(400)}])
        memory.add([{"id": "home-2", "text": "Ann lives in Lisse now.", "valid_from": days_ago(1)}])
        memory.add([{"id": "boat", "text": "The boat is late.", "valid_from": days_ago(0)}])
        assert memory.retrieve("Ann lives in Lisse", 3)[0].id == "home-1"
        assert [hit.id for hit in memory.retrieve("Ann lives in Lisse", 3, recency=30)] == ["home-2", "home-1", "boat"]
        asked = memory.retrieve("Ann lives in Lisse", 3, recency=30, at=days_ago(399))
        assert [hit.id for hit in asked] == ["home-1"]  # it was the newest then
        assert ids(memory, filter={"none": 1}, recency=30) == []


def test_how_old_a_document_is(tmp_path, backbone, clock):
    with opened(tmp_path, backbone) as memory:
        clock(NOW - timedelta(days=300))
        memory.add([{"id": "plain", "text": about("violin")}, {"id": "same day", "text": about("violin") + " too"}])
        clock(NOW - timedelta(days=200))
        memory.add([{"id": "dated", "text": about("violin") + " dated", "valid_from": days_ago(500)}])
        memory.add([{"id": "at", "text": about("violin") + " at", "metadata": {"at": "the harbour", "said": 1}}])
        memory.add_turns([{"role": "Ann", "content": about("violin"), "id": "turn"}], session="s", at=days_ago(50))
        clock(NOW)
        bank = memory.engine.bank
        known = bank.lookup(["plain", "same day", "dated", "at", "turn"], memory.namespace)
        ages = [(NOW - datetime.fromisoformat(d)).days for d in bank.dates([k.ordinal for k in known.values()])]
        expected = {"plain": 300, "same day": 300, "dated": 500, "at": 200, "turn": 50}
        assert dict(zip(known, ages, strict=True)) == expected
        memory.compact()
        assert [(NOW - datetime.fromisoformat(d)).days for d in bank.dates([k.ordinal for k in known.values()])] == ages
        memory.update({"id": "plain", "text": about("violin") + " again"})
        assert ids(memory, recency=10)[0] == "plain"
        clock(NOW - timedelta(days=1000))  # the clock goes back: all of it is as if new
        assert all(hit.score for hit in memory.retrieve("violin", 5, recency=10))


def test_relevance_is_what_it_was(tmp_path, backbone, clock):
    weights = RelevanceWeights(bias=-1.0, key=1.0, key_lead=2.0, words=1.0, words_lead=2.0)
    fitted = RelevanceConfig(keys=weights, words=weights, unrelated=0.2, least=0.0)
    adapter = tiny_adapter(backbone)
    adapter = replace(adapter, config=adapter.config.model_copy(update={"relevance": fitted}))
    with opened(tmp_path, backbone, adapter, lexical=0.7) as memory:
        known = {hit.id: hit.relevance for hit in filled(memory).retrieve("violin", 16)}
        for k in (1, 3, 16):
            hits = memory.retrieve("violin", k, recency=3)
            assert {hit.id: hit.relevance for hit in hits} == {hit.id: known[hit.id] for hit in hits}
        assert memory.explain("violin", "year", recency=3).relevance == known["year"]


def test_each_namespace_and_those_below(tmp_path, backbone, clock):
    with opened(tmp_path, backbone) as memory:
        for name, days in AGES.items():
            memory.within("users", name).add([{"id": name, "text": about("violin"), "valid_from": days_ago(days)}])
        below = memory.within("users", below=True)
        assert ids(below, recency=20) == list(AGES)
        assert ids(memory.within("users", "week"), recency=20) == ["week"]


def test_an_older_bank_knows_no_arrivals_and_a_damaged_row_is_found(tmp_path, backbone, clock):
    with opened(tmp_path, backbone) as memory:
        memory.add([{"id": "before", "text": about("violin")}])
    with connect(tmp_path / "bank" / CATALOG_FILE, writable=True) as db:
        db.execute("DROP TABLE arrivals")
    (tmp_path / "bank" / "catalog.seal").unlink()
    with opened(tmp_path, backbone) as memory:
        assert scores(memory, recency=5) == scores(memory)
        memory.add([{"id": "since", "text": about("violin")}])
        assert ids(memory, recency=5) == ["since", "before"]
        memory.add([{"id": "last", "text": about("glacier")}])
    with connect(tmp_path / "bank" / CATALOG_FILE, writable=True) as db:
        db.execute("UPDATE arrivals SET stored = '2999' WHERE ordinal = (SELECT max(ordinal) FROM arrivals)")
    (tmp_path / "bank" / "catalog.seal").unlink()
    report = repair_bank(tmp_path / "bank")
    assert "were stored" in report.problems[0] and not report.salvaged and not report.lost
    with opened(tmp_path, backbone) as memory:
        assert memory.verify().ok and ids(memory, recency=5)[0] == "since" and len(scores(memory)) == 3


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), True, "7", timedelta(days=-1)])
def test_what_is_no_half_life_is_refused(tmp_path, backbone, wrong):
    with opened(tmp_path, backbone) as memory, pytest.raises(InvalidQueryError, match="recency"):
        filled(memory).retrieve("violin", recency=wrong)
    with pytest.raises(ConfigError, match="recency"):
        opened(tmp_path, backbone, recency=wrong)


def test_it_needs_one_ranking(tmp_path, backbone):
    adapter = tiny_adapter(backbone, read_latent=True, **PER_LAYER)
    with pytest.raises(ConfigError, match="one ranking"):
        opened(tmp_path, backbone, adapter, recency=7)
    with opened(tmp_path / "off", backbone, adapter) as memory, pytest.raises(ConfigError, match="one ranking"):
        filled(memory).ask("violin", recency=7)
