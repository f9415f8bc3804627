"""The bank against a plain dictionary: random histories of writes, readers, snapshots and compactions agree with it."""

import copy
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from bank_builder import encoded, open_bank
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

SPACES = ("alice", "bob", "alice/bob")
IDS = ("a", "b", "c", "d", "é", "a'); DROP TABLE documents;--")
FILTERS = (
    ({"n": 1}, lambda m: m["n"] == 1),
    ({"n": {"$gte": 2}}, lambda m: m["n"] >= 2),
    ({"$or": [{"n": 0}, {"tag": "x"}]}, lambda m: m["n"] == 0 or m["tag"] == "x"),
    (lambda m: m["n"] % 2 == 0, lambda m: m["n"] % 2 == 0),
)

spaces = st.sampled_from(SPACES)
ids = st.sampled_from(IDS)
metadata = st.fixed_dictionaries({"n": st.integers(0, 3), "tag": st.sampled_from(["x", "y"])})


class BankAgainstDictionary(RuleBasedStateMachine):
    """`model` is namespace -> id -> (text, metadata); readers and snapshots keep a copy of the moment they saw."""

    readers = Bundle("readers")
    snapshots = Bundle("snapshots")

    @initialize()
    def start(self):
        self.root = Path(tempfile.mkdtemp())
        self.folder = self.root / "bank"
        self.bank = open_bank(self.folder)
        self.model = {space: {} for space in SPACES}
        self.named = 0
        self.open_readers = []
        self.follower = None

    @rule(space=spaces, items=st.dictionaries(ids, st.tuples(st.integers(0, 4), metadata), min_size=1, max_size=4))
    def commit(self, space, items):
        self.bank.commit(
            [encoded(name, f"text {version}", chunks=1 + version % 3, **m) for name, (version, m) in items.items()],
            space,
        )
        self.model[space] |= {name: (f"text {version}", m) for name, (version, m) in items.items()}

    @rule(space=spaces, wanted=st.lists(ids, max_size=4))
    def delete(self, space, wanted):
        deleted, missing = self.bank.delete(wanted, space)
        known = list(dict.fromkeys(wanted))
        assert deleted == [i for i in known if i in self.model[space]]
        assert missing == [i for i in known if i not in self.model[space]]
        for name in deleted:
            del self.model[space][name]

    @rule(segment_bytes=st.sampled_from([1, 2_000, 1 << 20]))
    def compact(self, segment_bytes):
        self.bank.compact(segment_bytes)

    @rule()
    def reopen(self):
        self.bank.close()
        self.bank = open_bank(self.folder)

    @rule(target=snapshots)
    def snapshot(self):
        self.named += 1
        self.bank.snapshot(f"s{self.named}")
        return f"s{self.named}", copy.deepcopy(self.model)

    @rule(taken=consumes(snapshots), target=snapshots)
    def drop_snapshot(self, taken):
        self.bank.drop_snapshot(taken[0])
        return multiple()

    @rule(taken=snapshots)
    def look_at_a_snapshot(self, taken):
        with open_bank(self.folder, snapshot=taken[0]) as reader:
            self.agree(reader, taken[1])

    @rule(target=readers)
    def open_a_reader(self):
        reader = open_bank(self.folder, read_only=True, follow=False)
        self.open_readers.append(reader)
        return reader, copy.deepcopy(self.model)

    @rule(reader=readers)
    def a_reader_sees_its_moment(self, reader):
        self.agree(*reader)

    @rule(reader=consumes(readers), target=readers)
    def a_reader_moves_on(self, reader):
        reader[0].refresh()
        return reader[0], copy.deepcopy(self.model)

    @rule()
    def a_reader_that_follows_sees_the_model(self):
        if self.follower is None:
            self.follower = open_bank(self.folder, read_only=True)
            self.open_readers.append(self.follower)
        self.agree(self.follower, self.model)

    @invariant()
    def the_writer_sees_the_model(self):
        if hasattr(self, "bank"):
            self.agree(self.bank, self.model)

    def agree(self, bank, model):
        for space in SPACES:
            expected = model[space]
            assert list(bank.iter_ids(space)) == sorted(expected)
            assert bank.count(space) == len(expected)
            stored = bank.get(IDS, space)
            assert {i: (d.text, d.metadata) for i, d in stored.items()} == expected
            self.agree_on_selections(bank, space, expected)

    def agree_on_selections(self, bank, space, expected):
        for where, accepts in ((None, lambda m: True), *FILTERS):
            selection = bank.select(space, where)
            ordinals = [
                int(ordinal)
                for _, _, block, allowed, *_ in selection.key_blocks("3")
                for ordinal in (block if allowed is None else block[allowed])
            ]
            assert ordinals == sorted(ordinals)
            found = {d.id: d for d in bank.documents(ordinals)}
            assert set(found) == {name for name, (_, m) in expected.items() if accepts(m)}
            assert all(d.namespace == space for d in found.values())
            stored = zip(found.values(), bank.key_rows(ordinals, "3"), bank.content(ordinals, 5), strict=True)
            for document, keys, content in stored:
                again = encoded(document.id, document.text, chunks=document.chunks, **document.metadata)
                assert keys.equal(again.keys["3"]) and content.equal(again.content[5])
                assert document.tokens == again.tokens

    def teardown(self):
        if hasattr(self, "bank"):
            for reader in self.open_readers:
                reader.close()
            assert self.bank.verify().ok
            self.bank.close()
            shutil.rmtree(self.root)


TestBankAgainstDictionary = pytest.mark.slow(BankAgainstDictionary.TestCase)
TestBankAgainstDictionary.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
