"""Indexes that follow a bank: every document is read once, whatever is asked about, and dead ones go in the end."""

import numpy as np
import pytest

from facade import opened, topics
from msa_plugin.engine import indexed
from msa_plugin.engine.indexed import Followed
from tiny import tiny_backbone


class Kept:
    """Remembers what it was given."""

    def __init__(self):
        self.given = {}

    def add(self, documents, texts):
        for document, text in zip(documents, texts, strict=True):
            assert document not in self.given, "added twice"
            self.given[document] = text


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def test_a_document_is_read_once_for_all_selections(tmp_path, backbone, monkeypatch):
    monkeypatch.setattr(indexed, "_READ", 2)
    with opened(tmp_path, backbone) as memory:
        memory.add(topics(5))
        bank = memory.engine.bank
        followed = Followed(bank, lambda d: d.id, Kept)
        even, ordinals = followed.of(bank.select("default", {"even": True}))
        assert sorted(even.given) == ordinals.tolist() and len(ordinals) in (2, 3)
        whole, ordinals = followed.of(bank.select("default"))
        assert whole is even and sorted(whole.given) == ordinals.tolist() and len(ordinals) == 5
        memory.add(topics(8)[5:])
        read = []
        documents = bank.documents
        monkeypatch.setattr(type(bank), "documents", lambda self, asked: read.extend(asked) or documents(asked))
        _, now = followed.of(bank.select("default"))
        followed.of(bank.select("default", {"even": True}))
        assert sorted(read) == sorted(set(now.tolist()) - set(ordinals.tolist()))


def test_documents_that_are_lost_meanwhile_are_left_out_and_asked_for_again(tmp_path, backbone, monkeypatch):
    with opened(tmp_path, backbone) as memory:
        memory.add(topics(5))
        bank = memory.engine.bank
        followed, selection, documents = Followed(bank, lambda d: d.id, Kept), bank.select("default"), bank.documents
        with monkeypatch.context() as lost:
            lost.setattr(type(bank), "documents", lambda self, asked: documents(asked)[:-2])
            index, found = followed.of(selection)
            assert sorted(index.given) == found.tolist() == selection.ordinals().tolist()[:-2]
        index, found = followed.of(selection)
        assert sorted(index.given) == found.tolist() == selection.ordinals().tolist()


def test_dead_documents_go_with_the_index_once_they_are_most_of_it(tmp_path, backbone, monkeypatch):
    monkeypatch.setattr(indexed, "_FEW", 6)
    with opened(tmp_path, backbone) as memory:
        bank = memory.engine.bank
        memory.add(topics(4))
        followed = Followed(bank, lambda d: d.text, Kept)
        most = 0
        for round_ in range(12):
            memory.update({"id": topics(4)[round_ % 4]["id"], "title": "", "text": f"changed {round_} times"})
            index, ordinals = followed.of(bank.select("default"))
            assert set(ordinals.tolist()) <= set(index.given) and len(ordinals) == 4
            most = max(most, len(index.given))
        assert 6 < most < 4 + 12
        assert np.count_nonzero(followed._known) == len(index.given)
