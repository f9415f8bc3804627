"""Words and names at rest: made in one go or merged, written, read and rebuilt, they are the same bytes."""

import logging

import numpy as np
import pytest
from bank_builder import NS, encoded, flip, open_bank, segment_folders
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_plugin.bank import migrate, records, segment, terms, words, writing
from msa_plugin.bank.migrate import migrate_bank
from msa_plugin.bank.repair import repair_bank
from msa_plugin.bank.verify import verify_bank
from msa_plugin.bank.words import WordTable
from msa_plugin.errors import BankCorruptError

TEXT = st.lists(st.sampled_from(["mill", "mills", "Orm", "the", "naïve", "x" * 40, "1984"]), max_size=9).map(" ".join)
DOCUMENTS = st.lists(st.tuples(TEXT, TEXT), max_size=12)


def arrays(table):
    return {name: tensor.tolist() for name, tensor in table.tensors().items()} | {"dtype": str(table.counts.dtype)}


def agrees(bank):
    """Whether each segment's words are those of its texts."""
    return all(
        arrays(part.table) == arrays(WordTable.of((d.title, d.text) for d in bank.documents(part.ordinals.tolist())))
        for part in bank.words(bank.select(NS))
    )


@settings(deadline=None, max_examples=40)
@given(documents=DOCUMENTS, data=st.data())
def test_merging_is_counting_in_one_go(documents, data):
    parts, kept = [], []
    cuts = sorted(data.draw(st.lists(st.integers(0, len(documents)), max_size=3)))
    for start, end in zip([0, *cuts], [*cuts, len(documents)], strict=True):
        positions = sorted(data.draw(st.sets(st.integers(0, end - start - 1)))) if end > start else []
        parts.append((WordTable.of(documents[start:end]), positions))
        kept += [documents[start + position] for position in positions]
    assert arrays(WordTable.merged(parts)) == arrays(WordTable.of(kept))


def test_a_word_more_often_than_a_byte_holds():
    table = WordTable.merged([(WordTable.of([("", "mill " * 300), ("", "mill")]), [0, 1])])
    [place] = table.places([b"mill"], terms.hashed(["mill"]))
    documents, counts = table.postings(place)
    assert (documents.tolist(), counts.tolist(), table.words) == ([0, 1], [300, 1], 301)


def test_words_with_the_same_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(words, "hashed", lambda found: np.full(len(found), -3))
    table = WordTable.of([("", "mill orm"), ("", "orm")])
    orm, mill, nothing = table.places([b"orm", b"mill", b"zebra"], np.full(3, -3))
    assert table.postings(orm)[0].tolist() == [0, 1] and table.postings(mill)[0].tolist() == [0] and nothing == -1


def test_they_follow_every_change(bank, folder):
    bank.commit([encoded("a", "mills on the Orm", title="Orm"), encoded("b", "glacier")], NS)
    bank.commit([encoded("c", "a mill", title="Mill (1984)")], NS)
    assert agrees(bank) and len(bank.words(bank.select(NS))) == 2
    bank.delete(["b"], NS)
    bank.commit([encoded("a", "nothing")], NS)
    assert agrees(bank)
    bank.compact()
    assert agrees(bank) and len(bank.words(bank.select(NS))) == 1 and verify_bank(folder).ok
    assert bank.stats(NS).bytes_words == sum(p.stat().st_size for p in folder.glob("segments/*/words-*"))


def test_damage_is_refused_named_and_counted_anew(folder):
    with open_bank(folder) as bank:
        bank.commit([encoded("a", "mills on the Orm", title="Orm"), encoded("b", "glacier")], NS)
    [path] = folder.glob("segments/*/words-*")
    sound = path.read_bytes()
    flip(path, -3)  # of the counts
    with open_bank(folder, read_only=True) as bank:
        [part] = bank.words(bank.select(NS))
        with pytest.raises(BankCorruptError, match="msa bank repair"):
            for place in range(len(part.table.hashes)):
                part.table.postings(place)
    report = verify_bank(folder)
    assert [str(path) in problem for problem in report.problems] == [True] and report.documents == ()
    assert repair_bank(folder).complete and path.read_bytes() == sound and verify_bank(folder).ok
    path.unlink()
    with pytest.raises(BankCorruptError):
        open_bank(folder)
    assert repair_bank(folder).complete and path.read_bytes() == sound
    with open_bank(folder) as bank:
        assert agrees(bank) and bank.count(NS) == 2


def other_tokenizer(monkeypatch, name="en-" + "0" * 16):
    for module in (segment, writing, migrate):
        monkeypatch.setattr(module, "tokenizer", lambda: name)


def test_words_of_another_tokenizer_are_never_used(folder, monkeypatch, caplog):
    with monkeypatch.context() as other, open_bank(folder) as bank:
        other_tokenizer(other)
        bank.commit([encoded("a", "mills"), encoded("b", "glacier", title="Ice")], NS)
        bank.commit([encoded("c", "mill")], NS)
    with open_bank(folder) as bank, caplog.at_level(logging.WARNING):
        assert agrees(bank) and agrees(bank)
        assert [part.table.source for part in bank.words(bank.select(NS))] == ["", ""]  # counted from texts
        assert len([r for r in caplog.records if f"msa bank migrate --bank {folder}" in r.getMessage()]) == 1
        bank.compact()
        [part] = bank.words(bank.select(NS))
        assert terms.tokenizer() in part.table.source and agrees(bank)
    assert verify_bank(folder).ok


def test_migration_counts_the_words_of_another_tokenizer_anew(folder, monkeypatch):
    with monkeypatch.context() as other, open_bank(folder) as bank:
        other_tokenizer(other)
        bank.commit([encoded("a", "mills"), encoded("b", "glacier", title="Ice")], NS)
    names = segment_folders(folder)
    assert migrate_bank(folder, dry_run=True).counted == 1
    report = migrate_bank(folder)
    assert (report.segments, report.counted) == (0, 1) and segment_folders(folder) == names
    assert [path.name for path in folder.glob("segments/*/words*")] == [records.words_name(terms.tokenizer())]
    assert verify_bank(folder).ok and migrate_bank(folder).counted == 0
    with open_bank(folder) as bank:
        assert agrees(bank) and terms.tokenizer() in bank.words(bank.select(NS))[0].table.source


def test_the_tokenizer_is_named_by_what_it_does(monkeypatch):
    name = terms.tokenizer()
    assert records.TOKENIZER.fullmatch(name)
    monkeypatch.setattr(terms, "LONGEST", 9)
    terms.tokenizer.cache_clear()
    try:
        assert terms.tokenizer() != name
    finally:
        monkeypatch.undo()
        terms.tokenizer.cache_clear()
    assert terms.tokenizer() == name
