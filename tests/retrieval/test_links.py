"""Titles beside routing keys: the arithmetic is as documented, and a chain of names is followed."""

import pytest

from facade import CHAIN, CHAIN_QUESTION, opened
from msa_plugin.retrieval.links import lift
from msa_plugin.retrieval.ranking import Ranked

DOCUMENTS = [
    *CHAIN,
    {"id": "orm", "title": "Orm", "text": "A river."},
    *({"id": f"x{i}", "title": f"Note {i}", "text": f"Nothing that anyone asks about, number {i}."} for i in range(12)),
]


def scores(memory, question=CHAIN_QUESTION):
    return {h.id: h.score for h in memory.retrieve(question, k=len(DOCUMENTS))}


def by_definition(base, weight, named, names):
    """What `msa_plugin.retrieval.links` says it does, on every document's score."""
    found = dict(base)
    for name in named:
        found[name] += 1.5 * weight * max(base[name], 0.0)
    gains = {}
    for top in sorted(found, key=lambda n: -found[n])[:3]:
        for name in names.get(top, ()):
            gains[name] = max(gains.get(name, 0.0), found[top] / len(names[top]) ** 0.5)
    return {n: s + weight * gains.get(n, 0.0) for n, s in found.items()}


@pytest.mark.parametrize("lexical", [0.0, 0.7])
def test_the_score_is_as_documented(tmp_path, backbone, lexical):
    with (
        opened(tmp_path / "a", backbone, lexical=lexical) as plain,
        opened(tmp_path / "b", backbone, lexical=lexical, titles=0.4) as named,
    ):
        plain.add(DOCUMENTS)
        named.add(DOCUMENTS)
        base, found = scores(plain), scores(named)
        names = {"mill": ["orm", "veld"], "veld": ["arno"]}
        assert found == pytest.approx(by_definition(base, 0.4, ["mill"], names), abs=1e-5)
        assert found["veld"] > base["veld"]
        hits = named.retrieve(CHAIN_QUESTION, k=5)
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
        low, high = named.engine.retriever.score_bounds
        assert all(low <= s <= high for s in found.values())


def test_names_bring_what_keys_rank_low(tmp_path, backbone):
    """A named document is scored although it is not among the candidates."""
    with opened(tmp_path, backbone, titles=9.0) as memory:
        memory.add(DOCUMENTS)
        # Keys bring three; the mill is named by the question, and names two with nine times its own score.
        assert {h.id for h in memory.retrieve(CHAIN_QUESTION, k=2)} == {"veld", "orm"}
        assert {h.id for h in memory.retrieve(CHAIN_QUESTION, k=3)} == {"mill", "veld", "orm"}


def test_it_follows_the_bank_and_its_filters(tmp_path, backbone):
    with opened(tmp_path, backbone, titles=9.0) as memory:
        memory.add(DOCUMENTS)
        assert memory.retrieve("who was hugo brandt", k=1)[0].id != "new"
        memory.add({"id": "new", "title": "Hugo Brandt", "text": "A painter.", "metadata": {"year": 1900}})
        assert memory.retrieve("who was hugo brandt", k=1)[0].id == "new"
        assert [h.id for h in memory.retrieve("kestrel mill", k=9, filter={"year": 1900})] == ["new"]
        memory.delete("new")
        assert "new" not in scores(memory, "who was hugo brandt")


def test_nothing_to_find_is_found_in_an_empty_memory(tmp_path, backbone):
    with opened(tmp_path, backbone, titles=1.0) as memory:
        assert memory.retrieve([CHAIN_QUESTION, "???"], k=3) == [[], []]
        memory.add(DOCUMENTS[0])
        assert [h.id for h in memory.retrieve(CHAIN_QUESTION, k=3)] == ["mill"]
        assert memory.retrieve(CHAIN_QUESTION, k=3, filter={"year": 1}) == []
        selection = memory.engine.bank.select("default")
        nothing = {}
        for step in memory.engine.retriever.signals.steps:
            lift(nothing, step([CHAIN_QUESTION], [nothing], selection)[0])
        assert nothing == {}


def test_a_book_names_whom_it_names_around_its_best_chunk(tmp_path, backbone):
    filler = "and so on and on it went for pages " * 900
    with opened(tmp_path, backbone, titles=5.0, window=512) as memory:
        memory.add([*DOCUMENTS, {"id": "book", "title": "Book", "text": f"Kestrel Mill. {filler} Port Arno."}])
        selection = memory.engine.bank.select("default")
        titles, book = (
            memory.engine.retriever.signals.titles,
            memory.engine.bank.lookup(["book"], "default")["book"].ordinal,
        )
        named = {}
        for chunk in (0, 31_000 // 32):  # of eight tokens, four characters each
            names = titles._names([Ranked(book, 1.0, {}, chunk)], selection)
            named[chunk] = [d.id for d in memory.engine.bank.documents(names[book, chunk])]
    assert [*named.values()] == [["mill"], ["arno"]]


def test_rounds_read_the_chain(tmp_path, backbone):
    with opened(tmp_path, backbone, titles=1.0) as memory:
        memory.add(DOCUMENTS)
        answer = memory.ask("Where was the builder of Kestrel Mill born?", max_new_tokens=2, max_rounds=2)
        assert {"mill", "veld"} <= {s.id for s in answer.sources}
