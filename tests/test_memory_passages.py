"""Long documents, found, shown and read by passage."""

import pytest

from facade import KINDS, TOPICS, about, manual, opened, topics, use_beside
from msa_plugin.config import BesideConfig
from msa_plugin.errors import InvalidQueryError
from msa_plugin.retrieval.cutting import LARGEST
from tiny import tiny_adapter


@pytest.fixture(params=["text", "kv", "latent", "per layer, text"])
def memory(tmp_path, backbone, request):
    adapter, settings = KINDS[request.param]
    adapter = tiny_adapter(backbone, **adapter)
    with opened(tmp_path, backbone, adapter, context_tokens=500, window=256, **settings) as memory:
        memory.add([{"id": "manual", "title": "Manual", "text": manual(*TOPICS[:6])}, *topics()[6:]])
        yield memory


def test_hits_have_the_passages_that_fit_best(memory):
    hits = {h.id: h for h in memory.retrieve("violin", 3)}
    text = hits["manual"].text
    best, *others = hits["manual"].passages
    assert (best.heading, best.text) == ("On the violin", f"{about('violin')} {about('violin')}")
    assert len(others) == 2 and all(best.score > p.score for p in others)
    for passage in (best, *others):
        assert passage.text == text[passage.start : passage.end]
    assert hits["manual"].passage is None
    [only] = hits["saffron"].passages
    assert (only.text, only.start, only.end, only.heading) == (about("saffron"), 0, len(about("saffron")), "")


def test_hits_can_be_passages(memory):
    hits = memory.retrieve("violin", 3, by="passage")
    assert len(hits) == 3 and hits[0].id == "manual" and hits[0].passage.heading == "On the violin"
    assert sorted((h.score for h in hits), reverse=True) == [h.score for h in hits]
    for hit in hits:
        assert (hit.text, hit.score, hit.passages) == (hit.passage.text, hit.passage.score, (hit.passage,))
    assert [h.id for h in hits].count("manual") > 1
    several = memory.retrieve(["violin", "saffron"], 2, by="passage")
    alone = memory.retrieve("violin", 2, by="passage")
    assert [(h.id, h.passage.start) for h in several[0]] == [(h.id, h.passage.start) for h in alone]


@pytest.mark.parametrize("by", ["sentence", None, 3, ["passage"]])
def test_hits_cannot_be_anything_else(memory, by):
    with pytest.raises(InvalidQueryError, match="by is 'document' or 'passage'"):
        memory.retrieve("violin", by=by)


def test_sources_are_the_passages_that_were_read(memory):
    answer = memory.ask("violin", max_new_tokens=2, max_rounds=1)
    whole = {d.id: d.text for d in memory.get(list(memory.ids()))}
    first = next(s for s in answer.sources if s.id == "manual")
    assert (first.heading, first.title) == ("On the violin", "Manual")
    assert len({(s.id, s.start) for s in answer.sources}) == len(answer.sources)
    for source in answer.sources:
        assert source.text == whole[source.id][source.start : source.end]
    assert answer.trace.context_tokens < 600 < len(whole["manual"])


def test_a_prompt_has_title_and_heading_above_each_passage(tmp_path, backbone, adapter, monkeypatch):
    read = []
    with opened(tmp_path, backbone, adapter, context_tokens=500) as memory:
        memory.add([{"id": "manual", "title": "Manual", "text": manual(*TOPICS)}])
        prefill = memory.engine.reader.prefill
        monkeypatch.setattr(memory.engine.reader, "prefill", lambda q, e: read.extend(e[0]) or prefill(q, e))
        memory.ask("violin and harbour", max_new_tokens=1)
    heads = [e.text.split("\n")[0] for e in read]
    assert {"Manual > On the violin", "Manual > On the harbour"} <= set(heads)
    assert [e.start for e in read] == sorted(e.start for e in read)


def test_neighbours_are_read_as_one_and_all_of_them_as_the_document(tmp_path, backbone, adapter):
    with opened(tmp_path, backbone, adapter, context_tokens=420) as memory:
        text = " ".join(f"{about('violin')} Number {n}." for n in range(6))
        assert LARGEST < len(text) < 2.5 * LARGEST
        memory.add([{"id": "long", "text": text}, {"id": "other", "text": about("glacier")}])
        answer = memory.ask("violin", max_new_tokens=1, max_rounds=1)
        longest = max((s for s in answer.sources if s.id == "long"), key=lambda s: len(s.text))
        assert longest.end - longest.start > LARGEST


def test_what_fits_is_read_whole(tmp_path, backbone, adapter):
    with opened(tmp_path, backbone, adapter, context_tokens=2000) as memory:
        memory.add({"id": "manual", "text": manual(*TOPICS)})
        [source] = memory.ask("violin", max_new_tokens=1).sources
        assert (source.text, source.start, source.heading) == (manual(*TOPICS), 0, "")


def test_a_question_whose_words_are_in_no_passage_is_answered_by_keys(tmp_path, backbone, adapter):
    with opened(tmp_path, backbone, adapter, context_tokens=300) as memory:
        memory.add({"id": "manual", "text": manual(*TOPICS)})
        assert memory.ask("zzz qqq", max_new_tokens=1).sources
        assert len(memory.retrieve("zzz qqq", 2, by="passage")) == 2


@pytest.mark.parametrize(
    "text",
    [
        "x" * 3000,
        "word " * 700,
        "\u4eca\u5929\u5929\u6c14\u5f88\u597d" * 100,
        "".join(f"    value_{n} = compute({n})\n" for n in range(100)),
        "a\u0301" * 900,
        "\n" * 2500 + "violin" + " " * 500,
    ],
    ids=["endless", "no sentence", "no spaces", "code", "combining", "blank"],
)
def test_odd_long_texts_have_passages(tmp_path, backbone, adapter, text):
    with opened(tmp_path, backbone, adapter, context_tokens=250) as memory:
        memory.add({"id": "odd", "text": text})
        for hit in (*memory.retrieve("violin", 5, by="passage"), *memory.retrieve("violin")):
            assert all(p.text and p.text == text[p.start : p.end] for p in hit.passages)
        for source in memory.ask("violin", max_new_tokens=1).sources:
            assert source.text and source.text == text[source.start : source.end]


def test_the_last_passage_is_found(tmp_path, backbone, adapter):
    with opened(tmp_path, backbone, adapter, context_tokens=250) as memory:
        text = manual(*TOPICS[:7]) + f"\n\n## Last\n\n{about('meteor')}"
        memory.add({"id": "manual", "text": text})
        [hit] = memory.retrieve("meteor", 1, by="passage")
        assert hit.text.endswith(about("meteor")) and hit.passage.end == len(text)
        assert about("meteor") in memory.ask("meteor", max_new_tokens=1).sources[0].text


def test_a_filter_that_leaves_one_document_and_a_snapshot(tmp_path, backbone, adapter):
    with opened(tmp_path, backbone, adapter, context_tokens=250) as memory:
        long = {"text": manual(*TOPICS), "metadata": {"kind": "long"}}
        memory.add([{"id": "manual", **long}, *topics()])
        found = memory.retrieve("violin", 3, by="passage", filter={"kind": "long"})
        assert {h.id for h in found} == {"manual"} and found[0].passage.heading == "On the violin"
        memory.snapshot("then")
        memory.add({"id": "manual", "text": manual(*TOPICS[:2]), "metadata": {"kind": "long"}})
        assert "violin" not in memory.retrieve("violin", 1, by="passage", filter={"kind": "long"})[0].text
        with opened(tmp_path, backbone, adapter, snapshot="then") as past:
            assert past.retrieve("violin", 3, by="passage", filter={"kind": "long"}) == found


def test_a_long_title_leaves_room_for_the_passage(tmp_path, backbone, adapter):
    with opened(tmp_path, backbone, adapter, context_tokens=100) as memory:
        memory.add({"id": "manual", "title": "title " * 60, "text": manual(*TOPICS)})
        [source] = memory.ask("violin", max_new_tokens=1).sources
        assert 50 <= len(source.text) <= 100


def test_a_document_is_fetched_once_for_a_question_and_tokenised_once_at_all(memory, monkeypatch):
    memory.ask("violin", max_new_tokens=1)
    fetched, placed = [], []
    bank, backbone = memory.engine.bank, memory.engine.backbone
    documents, places = type(bank).documents, backbone.tokenize_places
    monkeypatch.setattr(type(bank), "documents", lambda self, o: fetched.extend(o) or documents(self, o))
    monkeypatch.setattr(backbone, "tokenize_places", lambda texts: placed.extend(texts) or places(texts))
    if memory.engine.retriever.signals.titles is not None:
        use_beside(memory, BesideConfig(lexical=0.7))  # names read documents of their own
    memory.ask("violin", max_new_tokens=1)
    assert fetched and len(fetched) == len(set(fetched))
    assert placed == []


def test_what_is_kept_for_later_questions_is_bounded(tmp_path, backbone, adapter, monkeypatch):
    from msa_plugin.retrieval import passages

    monkeypatch.setattr(passages, "_KEPT", 5000)
    with opened(tmp_path, backbone, adapter, context_tokens=250) as memory:
        memory.add([{"id": f"m{n}", "text": f"{manual(*TOPICS)} {n}"} for n in range(6)])
        found = [memory.retrieve("violin", 6, by="passage") for _ in range(3)]
        assert found[0] == found[1] == found[2]
        memory.retrieve("violin", 1)
        assert memory.engine.passages._tokens < 5000


@pytest.mark.parametrize("budget", [60, 200, 900])
def test_something_of_every_chosen_document_is_read(tmp_path, backbone, adapter, budget):
    with opened(tmp_path, backbone, adapter, context_tokens=budget, window=256) as memory:
        chosen = [f"manual {n}" for n in range(3)]
        memory.add([{"id": i, "title": i, "text": manual(*TOPICS[n : n + 4])} for n, i in enumerate(chosen)])
        answer = memory.ask("violin", documents=chosen, max_new_tokens=2)
        assert {s.id for s in answer.sources} == set(chosen)
        assert answer.trace.context_tokens <= budget + 20 * len(answer.sources)  # "Document: " and blank lines
