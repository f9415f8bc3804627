"""Namespaces are told apart by every code point: no quote, wildcard, look-alike or path opens another tenant's."""

import itertools
import unicodedata
from contextlib import suppress

import pytest
from bank_builder import encoded, open_bank
from tenants import BREAKOUTS

from msa_plugin.errors import InvalidQueryError

NAMES = [
    "a", "A", " a", "a ", "a\n", "a\x00", "a\x00b", "a%", "_", "%", "*", "a' OR '1'='1", 'a"; DROP TABLE documents; --',
    "a/../b", "../a", "/", ".", "..", "a\\b", ":namespace", "?", "NULL", "None", "default", "0", "$a", "[a]",
    unicodedata.normalize("NFC", "\u00e9"), unicodedata.normalize("NFD", "\u00e9"),
    "\u0430", "\uff41", "a\u200b", "\u202ea", "\ufeffa", "ﬁ", "fi", "ß", "ss", "x" * 100_000, "x" * 99_999,
]  # fmt: skip


@pytest.fixture
def crowded(tmp_path):
    """One bank in which every name has a document of its own under the same id."""
    with open_bank(tmp_path / "bank") as bank:
        for number, name in enumerate(NAMES):
            bank.commit([encoded("same", f"of {number}", owner=number)], name)
        yield bank


def test_each_name_sees_its_own_document(crowded):
    assert len(set(NAMES)) == len(NAMES)
    for compacted in (False, True):
        if compacted:
            crowded.compact()
        for number, name in enumerate(NAMES):
            assert crowded.get(["same"], name)["same"].text == f"of {number}"
            selection = crowded.select(name)
            [stored] = crowded.documents(selection.ordinals().tolist())
            assert (stored.namespace, stored.text, selection.documents) == (name, f"of {number}", 1)
            assert (crowded.count(name), list(crowded.iter_ids(name))) == (1, ["same"])
            assert crowded.stats(name).documents == 1
    assert crowded.stats("a").namespaces == tuple(sorted(NAMES, key=lambda name: name.encode()))


def test_filters_do_not_leave_a_namespace(crowded):
    for number, name in itertools.islice(enumerate(NAMES), 0, None, 3):
        for where in [*BREAKOUTS, {"owner": {"$gte": 0}}, lambda metadata: True]:
            with suppress(InvalidQueryError):
                found = crowded.documents(crowded.select(name, where).ordinals().tolist())
                assert {d.metadata["owner"] for d in found} <= {number}


def test_deleting_in_one_name_leaves_all_others(crowded):
    for name in NAMES[::4]:
        assert crowded.delete(["same"], name) == (["same"], [])
        assert crowded.delete(["same"], name) == ([], ["same"])
    for number, name in enumerate(NAMES):
        held = crowded.get(["same"], name)
        assert [d.text for d in held.values()] == ([] if number % 4 == 0 else [f"of {number}"])


@pytest.mark.parametrize("name", ["", None, 0, b"a", "\ud800"], ids=repr)
def test_what_is_no_name_is_refused(crowded, name):
    for call in (
        crowded.select,
        lambda n: crowded.commit([encoded("x")], n),
        lambda n: crowded.get(["same"], n),
        lambda n: crowded.lookup(["same"], n),
        lambda n: crowded.delete(["same"], n),
        lambda n: list(crowded.iter_ids(n)),
        crowded.count,
        crowded.stats,
    ):
        with pytest.raises(InvalidQueryError, match="namespace"):
            call(name)


def test_many_ids_at_once_stay_inside(crowded):
    wanted = ["same", *(f"n{n}" for n in range(1200)), "same' OR '1'='1", "%", "sam_"]
    assert set(crowded.lookup(wanted, "a")) == {"same"}
    assert crowded.get(wanted, "a")["same"].text == "of 0"
