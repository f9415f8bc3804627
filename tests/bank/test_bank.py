"""What goes in comes out, exactly; updates, deletions, namespaces, threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bank_builder import FINGERPRINT, NS, encoded, open_bank, picture, segment_folders
from safetensors import safe_open

from msa_plugin import errors
from msa_plugin.types import Document, EncodedDocument


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_is_exact(folder, dtype):
    keys, content = torch.randn(3, 5).to(dtype), torch.randn(4, 2, 1, 3).to(dtype)
    document = Document("日本 id\n", "a text\0with NUL, 😀", "Title é", {"n": 1.5, "list": [1, "x"], "none": None})
    with open_bank(folder) as bank:
        [ordinal] = bank.commit([EncodedDocument(document, 11, {"shared": keys}, {2: content})], NS)
    with open_bank(folder, read_only=True) as bank:
        [stored] = bank.documents([ordinal])
        assert stored.document == document
        assert (stored.tokens, stored.chunks, stored.namespace) == (11, 3, NS)
        [key_rows], [rows] = bank.key_rows([ordinal], "shared"), bank.content([ordinal], 2)
        for found, given in ((key_rows, keys), (rows, content)):
            assert found.dtype == dtype and torch.equal(found, given)
        again = bank.latents(ordinal)
        assert again.document == document and again.tokens == 11
        assert torch.equal(again.keys["shared"], keys) and torch.equal(again.content[2], content)
        assert bank.fingerprint == FINGERPRINT


def test_files_are_plain_safetensors_with_the_documented_layout(bank, folder):
    one, two = encoded("one", chunks=1), encoded("two", chunks=3)
    bank.commit([one, two], NS)
    [name] = segment_folders(folder)
    with safe_open(folder / "segments" / name / "keys.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert sorted(tensors) == ["key.3", "key.5", "key_offsets", "key_sums", "ordinals"]
    assert tensors["ordinals"].tolist() == [1, 2] and tensors["key_offsets"].tolist() == [0, 1, 4]
    assert torch.equal(tensors["key.5"], torch.cat([one.keys["5"], two.keys["5"]]))
    with safe_open(folder / "segments" / name / "content.safetensors", framework="pt") as file:
        assert file.get_tensor("content_offsets").tolist() == [0, 2, 8]
        assert torch.equal(file.get_tensor("content.3"), torch.cat([one.content[3], two.content[3]]))


def test_without_content_there_is_no_content_file(bank, folder):
    [ordinal] = bank.commit([encoded("a", content=False)], NS)
    assert not list(folder.glob("segments/*/content.safetensors"))
    assert bank.latents(ordinal).content == {} and bank.stats(NS).bytes_content == 0
    with pytest.raises(errors.InvalidQueryError, match="layer 3"):
        bank.content([ordinal], 3)


def test_strided_and_sliced_tensors_are_stored_by_value(bank):
    wide = torch.randn(4, 16)
    bank.commit([EncodedDocument(Document("a", "x"), 1, {"g": wide[1:3, ::2]}, {})], NS)
    assert torch.equal(bank.key_rows([1], "g")[0], wide[1:3, ::2])


def test_update_replaces_in_one_step_and_ordinals_are_never_reused(bank):
    assert bank.commit([encoded("a"), encoded("b")], NS) == [1, 2]
    assert bank.commit([encoded("b", "new text", chunks=3), encoded("c")], NS) == [3, 4]
    assert {i: p[0] for i, p in picture(bank).items()} == {"a": 1, "b": 3, "c": 4}
    assert bank.get(["b"], NS)["b"].text == "new text"
    assert bank.delete(["c", "b", "a", "nobody", "a"], NS) == (["c", "b", "a"], ["nobody"])
    assert picture(bank) == {} and bank.count(NS) == 0
    bank.compact()
    assert bank.commit([encoded("a")], NS) == [5]


def test_metadata_can_change_without_encoding_again(bank):
    original = encoded("a", lang="en")
    [ordinal] = bank.commit([original], NS)
    kept = bank.latents(ordinal)
    renamed = Document("a", kept.document.text, kept.document.title, {"lang": "de"})
    [new] = bank.commit([EncodedDocument(renamed, kept.tokens, kept.keys, kept.content)], NS)
    assert bank.lookup(["a"], NS)["a"][:3] == (new, renamed.content_hash, {"lang": "de"})
    assert torch.equal(bank.key_rows([new], "3")[0], original.keys["3"])


def test_masks_are_absent_until_something_must_be_hidden(bank):
    bank.commit([encoded("a", k=1), encoded("b", k=2)], NS)
    bank.commit([encoded("c", k=2)], NS)
    assert [b.allowed for b in bank.select(NS).key_blocks("3")] == [None, None]
    bank.delete(["a"], NS)
    masks = [b.allowed for b in bank.select(NS).key_blocks("3")]
    assert masks[0].tolist() == [False, True] and masks[1] is None
    everything = bank.select(NS, {"k": 2})
    assert [b.allowed is None for b in everything.key_blocks("3")] == [False, True], "no mask that hides nothing"
    chosen = bank.select(NS, {"k": 1})
    assert chosen.documents == 0 and list(chosen.key_blocks("3")) == []
    assert bank.select(NS, lambda m: m["k"] == 2).documents == 2
    with pytest.raises(errors.InvalidQueryError, match="'7'"):
        list(bank.select(NS).key_blocks("7"))
    with pytest.raises(errors.InvalidQueryError, match="'7'"):
        bank.key_rows([2], "7")


def test_a_selection_outlives_deletion_and_compaction(bank):
    bank.commit([encoded("a"), encoded("b")], NS)
    selection = bank.select(NS)
    bank.delete(["a"], NS)
    assert bank.documents([1])[0].id == "a", "a query that was under way can still read what it selected"
    bank.compact()
    [block] = selection.key_blocks("3")
    assert torch.equal(block.keys[:2], encoded("a").keys["3"])
    assert [d.id for d in bank.documents([1, 2])] == ["a", "b"], "rows are kept for as long as the selection is"
    assert torch.equal(bank.key_rows([1], "3")[0], encoded("a").keys["3"]) and bank.content([1], 3)
    del selection
    bank.delete([], NS)
    for read in (bank.documents, lambda o: bank.key_rows(o, "3"), lambda o: bank.content(o, 3)):
        with pytest.raises(errors.BankError, match="repeat the query"):
            read([1, 2])


def test_stats_count_a_namespace_and_weigh_the_bank(bank, folder):
    bank.commit([encoded("a", chunks=2), encoded("b", chunks=3)], NS)
    bank.commit([encoded("x", chunks=4)], "other")
    bank.snapshot("s")
    bank.delete(["b"], NS)
    stats = bank.stats(NS)
    assert (stats.documents, stats.tokens, stats.chunks, stats.deleted) == (1, 14, 2, 1)
    assert stats.namespaces == (NS, "other") and stats.snapshots == ("s",) and stats.segments == 2
    on_disk = [p.stat().st_size for p in folder.glob("segments/*/keys.safetensors")]
    assert stats.bytes_keys == sum(on_disk)
    assert stats.bytes_content == sum(p.stat().st_size for p in folder.glob("segments/*/content.safetensors"))
    bank.delete(["x"], "other")
    assert bank.stats(NS).namespaces == (NS,)


def test_ids_come_in_code_point_order_and_in_pages(bank, monkeypatch):
    monkeypatch.setattr("msa_plugin.bank.bank._PAGE", 2)
    names = ["b", "a", "Ω", "B", "a b"]
    bank.commit([encoded(name) for name in names], NS)
    assert list(bank.iter_ids(NS)) == sorted(names)


def test_many_ids_at_once(bank):
    names = [f"d{n}" for n in range(1203)]
    ordinals = bank.commit([encoded(name, chunks=1, content=False) for name in names], NS)
    assert set(bank.lookup(names, NS)) == set(names) == set(bank.get(names, NS))
    assert [d.id for d in bank.documents(ordinals[::-1])] == names[::-1]


ONE = torch.ones(1, 2)


def one(id="a", metadata=None, content=None, **keys):
    return [EncodedDocument(Document(id, "x", "", metadata or {}), 1, keys, content or {})]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([encoded("a"), encoded("a", "other")], "'a' occurs twice"),
        ([encoded("a"), encoded("b", content=False)], "same settings"),
        ([encoded("a", chunks=0)], "at least one chunk"),
        (one(), "routing keys"),
        (one("", g=ONE), "id"),
        (one(g=ONE * torch.nan), "NaN"),
        (one(g=ONE.cfloat()), "dtypes"),
        (one(g=ONE, h=torch.ones(2, 2)), "different numbers of chunks"),
        (one(g=ONE, content={1: torch.ones(1, 3, 1, 1)}), "content must be"),
        (one(g=ONE, metadata={"k": "\0"}), "NUL"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(bank, folder, documents, message):
    error = errors.DuplicateDocumentError if "twice" in message else errors.InvalidDocumentError
    with pytest.raises(error, match=message):
        bank.commit(documents, NS)
    assert bank.version == 0 and segment_folders(folder) == []


def test_odd_arguments(bank):
    assert bank.commit([], NS) == [] and bank.version == 0
    assert bank.delete([], NS) == ([], []) and bank.documents([]) == []
    assert bank.lookup(["\ud800"], NS) == {}, "a string that SQLite cannot hold was never stored"
    for namespace in ("", "\ud800", None):
        with pytest.raises(errors.InvalidQueryError, match="namespace"):
            bank.commit([encoded("a")], namespace)
        with pytest.raises(errors.InvalidQueryError, match="namespace"):
            bank.select(namespace)


def test_a_closed_bank_says_so(bank):
    bank.commit([encoded("a")], NS)
    rows = bank.key_rows([1], "3")[0]
    bank.close()
    bank.close()
    for use in (lambda: bank.count(NS), lambda: bank.commit([encoded("b")], NS), bank.refresh, lambda: bank.select(NS)):
        with pytest.raises(errors.BankError, match="closed"):
            use()
    assert torch.equal(rows, encoded("a").keys["3"]), "tensors handed out stay valid"


def test_threads_share_a_handle(bank):
    bank.commit([encoded("base")], NS)

    def write(worker):
        for n in range(6):
            bank.commit([encoded(f"{worker}-{n}", chunks=1)], NS)
            bank.delete([f"{worker}-{n - 1}"], NS)

    def read(_):
        for _ in range(60):
            selection = bank.select(NS, {"x": {"$exists": False}})
            ordinals = torch.cat([b.ordinals for b in selection.key_blocks("5")]).tolist()
            assert 1 in ordinals and "base" in bank.get(["base"], NS) and bank.documents([1])[0].id == "base"

    with ThreadPoolExecutor(5) as pool:
        for work in [pool.submit(call, n) for n, call in enumerate((write, write, write, read, read))]:
            work.result()
    assert set(picture(bank)) == {"base", "0-5", "1-5", "2-5"}
