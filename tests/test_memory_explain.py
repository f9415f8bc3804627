"""`memory.explain`: the parts add up to what `retrieve` ranks by, for documents that it finds and others."""

from itertools import pairwise

import pytest

from facade import CHAIN, CHAIN_QUESTION, PER_LAYER, about, opened, topics
from msa_plugin.errors import InvalidQueryError, UnknownDocumentError
from tiny import judging, tiny_adapter

DOCUMENTS = [*CHAIN, *({"id": f"x{i}", "text": f"Nothing that anyone asks about, number {i}."} for i in range(12))]


def chained(tmp_path, backbone, **settings):
    memory = opened(tmp_path, backbone, judging(tiny_adapter(backbone, beside=True)), **settings)
    memory.add(DOCUMENTS)
    return memory


def test_the_parts_are_those_that_retrieve_ranks_by(tmp_path, backbone):
    with chained(tmp_path, backbone) as memory:
        hits = memory.retrieve(CHAIN_QUESTION, 8)
        for place, hit in enumerate(hits, 1):
            found = memory.explain(CHAIN_QUESTION, hit.id)
            assert (found.id, found.title, found.text) == (hit.id, hit.title, hit.text)
            assert found.score == hit.score and found.relevance == hit.relevance
            assert (found.place, found.considered) == (place, len(DOCUMENTS))
            assert found.signals == hit.signals and sum(found.signals.values()) == pytest.approx(hit.score)
            assert sum(found.words.values()) == pytest.approx(found.signals.get("words", 0.0), abs=1e-5)
            assert sum(by.added for by in found.named) == pytest.approx(found.signals.get("names", 0.0))
            assert max(chunk.score for chunk in found.chunks) == pytest.approx(found.signals["keys"], abs=1e-5)
            assert sum(found.layers.values()) == pytest.approx(found.signals["keys"], abs=1e-5)
            assert found == memory.explain(CHAIN_QUESTION, hit)


def test_what_brought_each_of_a_chain(tmp_path, backbone):
    with chained(tmp_path, backbone) as memory:
        mill, veld, arno = (memory.explain(CHAIN_QUESTION, name) for name in ("mill", "veld", "arno"))
        assert [by.id for by in mill.named] == [None] and set(mill.words) == {"kestrel", "mill"}
        assert [(by.id, by.title) for by in veld.named] == [("mill", "Kestrel Mill")]
        assert set(veld.words) == {"builder", "born"}
        assert arno.words == {} and "words" not in arno.places
        assert mill.places["words"] == 1
        assert memory.explain(CHAIN_QUESTION, "x3").named == ()
        assert "named in" in veld._repr_html_() and "the question names it" in mill._repr_html_()


def test_chunks_cover_the_text(tmp_path, backbone):
    with opened(tmp_path, backbone) as memory:
        text = "na\u00efve \U0001f30d " + " ".join(about(t["id"]) for t in topics())
        memory.add({"id": "long", "title": "A title", "text": text})
        chunks = [chunk for chunk in memory.explain("violin", "long").chunks if chunk.start < chunk.end]
        assert chunks[0].start == 0 and chunks[-1].end == len(text)
        assert all(a.end <= b.start <= a.end + 1 for a, b in pairwise(chunks))


def test_a_document_that_is_far_behind_is_explained_too(tmp_path, backbone):
    with opened(tmp_path, backbone, tiny_adapter(backbone, beside=True)) as memory:
        memory.add([*topics(), *({"id": f"n{i}", "text": about("violin") + f" {i}"} for i in range(150))])
        assert "meteor" not in [hit.id for hit in memory.retrieve("violin", 100)]
        found = memory.explain("violin", "meteor")
        assert found.place == found.considered and 100 < found.considered <= 158 and found.score < found.best
        far = next(hit for hit in memory.retrieve("violin", 158) if hit.id == "meteor")
        assert far.score == pytest.approx(found.score)


def test_where_layers_rank_for_themselves(tmp_path, backbone):
    with opened(tmp_path, backbone, tiny_adapter(backbone, **PER_LAYER)) as memory:
        memory.add(topics())
        hits = memory.retrieve("violin", 8)
        for hit in hits:
            found = memory.explain("violin", hit.id)
            assert found.score == pytest.approx(hit.score, abs=1e-5)
            assert found.signals == {"keys": pytest.approx(hit.score, abs=1e-5)} and set(found.layers) == {2, 3}
            assert "keys" in found._repr_html_()


def test_only_what_the_question_may_see(full):
    full.within("users", "ann").add([{"id": "note", "text": about("violin")}])
    with pytest.raises(UnknownDocumentError, match="note"):
        full.explain("violin", "note")
    with pytest.raises(UnknownDocumentError, match="glacier"):
        full.explain("violin", "glacier", filter={"even": False})
    with pytest.raises(InvalidQueryError, match="by its id or a hit"):
        full.explain("violin", 3)
    for question in ("", "  ", ["violin"], None):
        with pytest.raises(InvalidQueryError):
            full.explain(question, "violin")
    below = full.within(below=True)
    [hit] = [hit for hit in below.retrieve("violin", 9) if hit.id == "note"]
    assert below.explain("violin", hit).namespace == hit.namespace
    full.delete("glacier")
    with pytest.raises(UnknownDocumentError):
        full.explain("violin", "glacier")
