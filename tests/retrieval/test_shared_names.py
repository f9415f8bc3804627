"""Shared names beside routing keys: arithmetic and gates are as documented, and only what may be seen counts."""

import pytest

from facade import opened
from msa_plugin.retrieval.shared_names import ASKED, BELOW

MILL = {"id": "mill", "text": "The old mill stands on a brook and was built by Anna Veld, 412 metres from here."}
CHAIN = [
    MILL,
    {"id": "veld", "text": "We know that Anna Veld was born in Port Arno and that she died at sea."},
    {"id": "bridge", "text": "A wooden bridge, 412 metres long, crosses the marsh."},
    {"id": "hill", "text": "One climbs 412 metres to the chapel."},
]
# Fifteen of them share a name that too many have.
OTHERS = [{"id": f"x{i}", "text": f"Nothing that Hugo Brandt asks about, number {i}."} for i in range(15)]
OTHERS += [{"id": f"y{i}", "text": f"Nothing at all, number {i}."} for i in range(61)]
DOCUMENTS = [*CHAIN, *OTHERS]  # 80: a name that more than 4 have leads nowhere
QUESTION = "where was the builder of the old mill born"


def scores(memory, question=QUESTION, **options):
    return {h.id: h.score for h in memory.retrieve(question, k=len(DOCUMENTS), **options)}


def lifted(base, weight, groups):
    """What `retrieval.shared_names` says it does, on every document's score; `groups` share a name."""
    found = dict(base)
    for top in sorted(base, key=lambda n: -base[n])[:3]:
        for group in groups:
            if top in group:
                others = [name for name in group if name != top and name in base]
                for name in others:
                    gained = min(base[name] + weight * base[top] / len(others) ** 0.5, BELOW * base[top])
                    found[name] = max(found[name], gained)
    return found


VELD, METRES = ("mill", "veld"), ("mill", "bridge", "hill")


@pytest.mark.parametrize("lexical", [0.0, 1.0])
@pytest.mark.parametrize("weight", [0.4, 9.0])
def test_the_score_is_as_documented(tmp_path, backbone, lexical, weight):
    with (
        opened(tmp_path / "a", backbone, lexical=lexical) as plain,
        opened(tmp_path / "b", backbone, lexical=lexical, mentions=weight) as linked,
    ):
        plain.add(DOCUMENTS)
        linked.add(DOCUMENTS)
        base, found = scores(plain), scores(linked)
        assert found == pytest.approx(lifted(base, weight, [VELD, METRES]), abs=1e-5)
        hits = linked.retrieve(QUESTION, k=5)
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
        assert [h.id for h in hits] == sorted(found, key=lambda n: -found[n])[:5]


def test_a_chain_without_titles_is_found(tmp_path, backbone):
    with (
        opened(tmp_path / "a", backbone, lexical=5.0) as plain,
        opened(tmp_path / "b", backbone, lexical=5.0, mentions=1.0) as linked,
    ):
        plain.add(DOCUMENTS)
        linked.add(DOCUMENTS)
        question = "who built the old mill on a brook"
        before, found = scores(plain, question), scores(linked, question)
        assert max(before, key=before.get) == max(found, key=found.get) == "mill", "what links stays ahead"
        assert found["mill"] == before["mill"]
        assert before["mill"] * BELOW >= found["veld"] > before["veld"]
        assert {n for n in found if found[n] != before[n]} == {"veld", "bridge", "hill"}
        veld = linked.explain(question, "veld")
        assert [(by.id, by.shared) for by in veld.named] == [("mill", True)]
        assert veld.score == pytest.approx(found["veld"]) and sum(veld.signals.values()) == pytest.approx(veld.score)
        assert "shares a name with" in veld._repr_html_()


@pytest.mark.parametrize(
    ("question", "linked_to"),
    [
        ("who built the old mill on a brook", {"veld", "bridge", "hill"}),
        ("did anna veld build the old mill on a brook", {"bridge", "hill"}),
        ("is the old mill on a brook 412 metres from here", {"veld"}),
        (f"the old mill on a brook: {' '.join(f'word{n}' for n in range(ASKED))}", set()),
    ],
)
def test_what_is_asked_for_is_no_link_and_many_words_follow_none(tmp_path, backbone, question, linked_to):
    with opened(tmp_path, backbone, lexical=5.0, mentions=1.0) as memory:
        memory.add(DOCUMENTS)
        names = {h.id for h in memory.retrieve(question, k=80) if "names" in h.signals}
        assert names == linked_to


def test_names_that_many_have_and_small_memories_link_nothing(tmp_path, backbone):
    with opened(tmp_path, backbone, lexical=5.0, mentions=1.0) as memory:
        memory.add(DOCUMENTS)
        question = "what is number 7 that is asked about"
        assert not any("names" in h.signals for h in memory.retrieve(question, k=80) if h.id.startswith("x"))
        memory.delete([d["id"] for d in OTHERS[20:]])
        assert memory.stats().documents == 24  # a twentieth of which is one: nobody could share a name
        assert not any("names" in h.signals for h in memory.retrieve(QUESTION, k=24))


def test_only_what_a_question_may_see_links_and_counts(tmp_path, backbone):
    question = "who built the old mill on a brook"
    with opened(tmp_path, backbone, lexical=5.0, mentions=1.0) as memory:
        memory.add(DOCUMENTS)
        alone = scores(memory, question)
        for n in range(9):  # whoever counted these would find that too many have it
            memory.within(f"other{n}").add({"id": "x", "text": "Anna Veld was here."})
        memory.add([{"id": f"m{n}", "text": f"Anna Veld {n}.", "metadata": {"late": True}} for n in range(9)])
        assert "names" not in memory.explain(question, "veld").signals
        seen = {h.id: h for h in memory.retrieve(question, k=80, filter={"late": {"$exists": False}})}
        assert {n: h.score for n, h in seen.items()} == pytest.approx(alone, abs=1e-6)
        assert "names" in seen["veld"].signals
        memory.delete([f"m{n}" for n in range(9)])
        assert scores(memory, question) == pytest.approx(alone, abs=1e-6)


def test_what_was_not_valid_then_links_nothing(tmp_path, backbone):
    question = "who built the old mill on a brook"
    with opened(tmp_path, backbone, lexical=5.0, mentions=1.0) as memory:
        memory.add([{**d, "valid_from": "2020-01-01"} if d["id"] == "veld" else d for d in DOCUMENTS])
        before = {h.id: h.signals for h in memory.retrieve(question, k=80, at="2019-06-01")}
        after = {h.id: h.signals for h in memory.retrieve(question, k=80, at="2021-06-01")}
        assert "veld" not in before and "names" in before["bridge"] and "names" in after["veld"]


def test_rows_of_a_batch_are_each_their_own(tmp_path, backbone):
    questions = [QUESTION, "number 7", "who built the old mill on a brook", "did anna veld build the old mill"]
    with opened(tmp_path, backbone, lexical=5.0, titles=0.4, mentions=1.0) as memory:
        assert memory.retrieve([QUESTION, "???"], k=3) == [[], []]
        memory.add(DOCUMENTS)
        rows = memory.retrieve(questions, k=6)
        for question, row in zip(questions, rows, strict=True):
            alone = memory.retrieve(question, k=6)
            assert [h.id for h in alone] == [h.id for h in row]
            assert [h.score for h in alone] == pytest.approx([h.score for h in row], abs=1e-6)
