"""Words beside the keys, and indexes in front of them, over shards."""

import pytest
from local import LocalActors
from test_equality import QUESTIONS, filled, seen

from facade import about, topics, use_prefilter
from msa_plugin.config import ClusterConfig
from msa_plugin.errors import ClusterError, ConfigError

WORDED = ["a violin, named topic", "glacier ice", "what keeps bees?", "words that no document has: xyzzy"]


def prefiltered(memory, spec, folder):
    use_prefilter(memory, spec, folder, memory.engine.bank.select("default"))
    return memory


def nearly(hits):
    """What an index hands on is multiplied in another order than whole segments are: the last bits differ."""
    return [(h.id, round(h.score, 5), h.ordinal, h.text) for h in hits]


NAMES = [
    {"id": "mill", "text": "The old mill on the Lisse was built by Hugo Brandt, 412 metres from here."},
    {"id": "brandt", "title": "Hugo Brandt", "text": "We know that Hugo Brandt died at sea, and kept the Lisse ferry."},
    {"id": "bridge", "text": "A wooden bridge, 412 metres long, crosses the marsh."},
    {"id": "lisse", "title": "Lisse", "text": "A river."},
    *({"id": f"filler-{n}", "text": f"Nothing at all, number {n}."} for n in range(60)),
]
BESIDE = [
    ({"lexical": 0.7}, set()),
    ({"lexical": 0.7, "titles": 0.5}, {"brandt", "lisse"}),
    ({"lexical": 5.0, "mentions": 1.0}, {"brandt", "bridge"}),
    ({"lexical": 5.0, "titles": 0.4, "mentions": 1.0}, {"brandt", "bridge", "lisse"}),
    ({"mentions": 1.0}, set()),  # keys alone say whose names lead on
]
FILTERS = (None, {"copy": 1}, {"copy": 99}, {"number": {"$exists": False}}, lambda metadata: metadata.get("copy") != 0)


# -- words and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "named"), BESIDE, ids=lambda value: " ".join(sorted(value)))
def test_words_and_names_count_as_in_one_process(open_plain, open_cluster, settings, named):
    plain, cluster = (filled(open(**settings)) for open in (open_plain, open_cluster))
    for memory in (plain, cluster):
        memory.add(NAMES)
    asked = ["who built the old mill on the lisse", "who was hugo brandt", "what is number 7", *WORDED]
    for k, where in [(1, None), (3, None), (100, None), *((9, where) for where in FILTERS)]:
        rows = [seen(row) for row in plain.retrieve(asked, k, filter=where)]
        assert [seen(row) for row in cluster.retrieve(asked, k, filter=where)] == rows
    hits = [hit for row in plain.retrieve(asked[:2], 9) for hit in row]
    by_name = {hit.id for hit in hits if "names" in hit.signals}
    assert named <= by_name and (named or "mentions" in settings or not by_name)
    assert any("words" in hit.signals for hit in hits) == ("lexical" in settings)


def test_words_of_new_documents_count(open_plain, open_cluster):
    memories = [filled(open(lexical=1.0)) for open in (open_plain, open_cluster)]
    for memory in memories:
        memory.retrieve(WORDED[0])
        memory.add({"id": "new", "text": "xyzzy stands in one document alone"})
        memory.delete(["violin-2"])
    plain, cluster = ([seen(row) for row in memory.retrieve(WORDED, 6)] for memory in memories)
    assert cluster == plain and plain[3][0][0] == "new"


def test_texts_stay_where_they_are(open_cluster):
    memory = filled(open_cluster(lexical=1.0))
    asked = []
    for _ in range(2):
        del LocalActors.latest.calls[:]
        memory.retrieve(WORDED, 1)
        asked.append(sorted(method for _, method in LocalActors.latest.calls))
    assert asked[0] == asked[1]  # nothing is fetched first
    assert [asked[0].count(method) for method in ("word_counts", "word_scores")] == [2, 2]  # one a shard
    assert asked[0].count("documents") <= 2  # of what was found


def test_a_shard_that_splits_words_otherwise_is_refused(open_cluster, monkeypatch):
    memory = filled(open_cluster(lexical=1.0))
    monkeypatch.setattr("msa_plugin.cluster.search.tokenizer", lambda: "en-other")
    with pytest.raises(ClusterError, match="same versions"):
        memory.retrieve(WORDED[0])
    with pytest.raises(ClusterError, match="same versions"):
        memory.engine.search.holders([("violin",)], memory.engine.bank.select("default"), 5)


@pytest.mark.parametrize("method", ["ranked", "word_counts", "word_scores"])
def test_a_lost_shard_takes_its_words_along(open_cluster, method):
    memory = filled(open_cluster(ClusterConfig(shards=2, on_lost="partial", restarts=1), lexical=1.0))
    whole = seen(memory.retrieve(WORDED[0], 50))
    LocalActors.latest.lose(1, method)
    found = memory.retrieve(WORDED[0], 50)
    assert found.missed_shards == (1,)
    assert {h[0] for h in seen(found)} <= {h[0] for h in whole}
    memory.refresh()
    assert seen(memory.retrieve(WORDED[0], 50)) == whole


# -- prefilters ----------------------------------------------------------------------------------------------------


def test_an_exhaustive_index_in_every_shard_finds_what_exact_search_finds(open_cluster, tmp_path):
    memory = filled(open_cluster())
    exact = [nearly(row) for row in memory.retrieve(QUESTIONS, 5)]
    prefiltered(memory, "coarse:all@candidates=1000", tmp_path / "indexes")
    assert [nearly(row) for row in memory.retrieve(QUESTIONS, 5)] == exact
    index = memory.engine.retriever.prefilter
    assert index.documents == len(list(memory.ids())) and index.bytes > 0
    saved = {path.parent.name for path in (tmp_path / "indexes").rglob("prefilter-*")}
    assert saved == {"shard-0000", "shard-0001"}


def test_few_candidates_may_miss_but_score_exactly(open_cluster, tmp_path):
    memory = filled(open_cluster())
    exact = {hit[0]: hit[1] for hit in nearly(memory.retrieve(QUESTIONS[0], 100))}
    prefiltered(memory, "coarse:1@candidates=1", tmp_path / "indexes")
    found = nearly(memory.retrieve(QUESTIONS[0], 4))
    assert 1 <= len(found) <= 8 and all(exact[hit[0]] == hit[1] for hit in found)


def test_changes_after_an_index_was_built(open_cluster, tmp_path):
    memory = prefiltered(filled(open_cluster()), "coarse:all@candidates=1000", tmp_path / "indexes")
    memory.add([{"id": f"new-{n}", "text": about("violin")} for n in range(4)])
    memory.delete(["violin-0"])
    ways = ({}, {"filter": {"copy": {"$exists": False}}}, {"filter": {"copy": 1}})
    behind = [nearly(memory.retrieve(QUESTIONS[0], 9, **way)) for way in ways]
    use_prefilter(memory, None, tmp_path, memory.engine.bank.select("default"))
    assert behind == [nearly(memory.retrieve(QUESTIONS[0], 9, **way)) for way in ways]
    assert "new-0" in [hit[0] for hit in behind[0]] and len(behind[1]) == 4


def test_a_shard_without_a_document_has_no_index_and_is_searched_exactly(open_cluster, tmp_path):
    memory = open_cluster(3)
    memory.add({"id": "only", "text": about("violin")})
    prefiltered(memory, "coarse:all", tmp_path / "indexes")
    assert [hit.id for hit in memory.retrieve(QUESTIONS[0])] == ["only"]
    memory.add(topics())
    assert len(memory.retrieve(QUESTIONS[0], 50)) == 1 + len(topics())


def test_a_shard_that_was_lost_finds_its_index_again(open_cluster, tmp_path):
    memory = prefiltered(filled(open_cluster()), "coarse:all@candidates=1000", tmp_path / "indexes")
    before = seen(memory.retrieve(QUESTIONS[0], 9))
    LocalActors.latest.lose(1, "ranked")
    assert seen(memory.retrieve(QUESTIONS[0], 9)) == before
    assert LocalActors.latest.starts.count(1) == 2


def test_an_index_goes_when_it_is_let_go(open_cluster, tmp_path):
    memory = prefiltered(filled(open_cluster()), "coarse:all", tmp_path / "indexes")
    shards = [actor.shard for actor in memory.engine.bank.shards._running]
    assert all(shard._prefilters for shard in shards)
    prefiltered(memory, None, tmp_path)
    memory.retrieve(QUESTIONS[0])
    assert not any(shard._prefilters for shard in shards)


def test_words_and_an_index_together(open_cluster, open_plain, tmp_path):
    plain, cluster = filled(open_plain(lexical=1.0)), filled(open_cluster(lexical=1.0))
    prefiltered(cluster, "coarse:all@candidates=1000", tmp_path / "indexes")
    rows = [nearly(row) for row in plain.retrieve(WORDED, 6)]
    assert [nearly(row) for row in cluster.retrieve(WORDED, 6)] == rows


def test_bad_prefilters_are_refused(open_cluster, tmp_path):
    memory = open_cluster()
    with pytest.raises(ConfigError, match="no document"):
        prefiltered(memory, "coarse:all", tmp_path)
    memory.add(topics())
    for spec in ("coarse:none", "nothing", "faiss:Nonsense17"):
        with pytest.raises(ConfigError):
            prefiltered(memory, spec, tmp_path)
    assert memory.engine.retriever.prefilter is None


# -- recency ---------------------------------------------------------------------------------------------------------


def test_newer_documents_rank_higher_in_a_cluster_as_in_one_process(open_cluster, open_plain, clock):
    memories = [open_plain(lexical=1.0), open_cluster(lexical=1.0)]
    for at, first in (("2026-01-01", 0), ("2026-04-01", 3)):
        clock(at)
        for memory in memories:
            memory.add([{"id": f"n{i}", "text": about("violin") + f" {i}"} for i in range(first, first + 3)])
            memory.add(
                [{"id": f"from {first}", "text": about("violin") + " from", "valid_from": f"2026-0{first + 1}-15"}]
            )
    clock("2026-06-01")
    plain, cluster = (seen(memory.retrieve("violin", 8, recency=20)) for memory in memories)
    assert cluster == plain != seen(memories[1].retrieve("violin", 8))
    assert {name for name, *_ in plain[:4]} == {"n3", "n4", "n5", "from 3"}
    below = memories[1].within(below=True).retrieve("violin", 8, recency=20)
    assert seen(below) == cluster
