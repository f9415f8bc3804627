"""Adding, updating, deleting and getting documents through the facade."""

import gc
from dataclasses import replace
from itertools import count

import pytest

from facade import TOPICS, about, count_runs, opened, topics
from msa_plugin import errors
from msa_plugin.types import Document, EncodedDocument, content_hash
from tiny import tiny_adapter


@pytest.mark.parametrize(
    "documents",
    [
        about("violin"),
        {"id": "v", "text": about("violin"), "title": "Strings", "metadata": {"year": 1999}},
        Document("v", about("violin"), "Strings", {"year": 1999}),
        [about("violin"), {"text": about("glacier")}, Document("m", about("meteor"))],
        (text for text in (about("violin"), about("glacier"))),
        {about("violin"): 1, about("glacier"): 2}.keys(),
    ],
    ids=["string", "mapping", "document", "list", "generator", "keys"],
)
def test_every_kind_of_input_is_stored(memory, documents):
    report = memory.add(documents)
    assert report.added and not (report.updated or report.unchanged or report.skipped)
    stored = memory.get(report.added)
    assert [d.id for d in stored] == list(report.added)
    assert all(d.text.startswith(("Violin", "Glacier", "Meteor")) for d in stored)
    assert report.tokens == sum(len(f"{d.title}\n{d.text}" if d.title else d.text) for d in stored)  # a byte a token
    assert memory.stats().documents == len(stored) == len(list(memory.ids()))


def test_title_and_metadata_survive(memory):
    memory.add({"id": "v", "text": "x", "title": "Strings", "metadata": {"a": [1, {"b": None}], "é": "ü"}})
    assert memory.get("v") == [Document("v", "x", "Strings", {"a": [1, {"b": None}], "é": "ü"})]


def test_ids_are_made_from_the_content(memory):
    first, titled = memory.add(["a text", {"text": "a text", "title": "T"}]).added
    assert first == content_hash("", "a text")[:16]
    assert titled == content_hash("T", "a text")[:16]
    assert memory.add("a text").unchanged == (first,)


def test_known_content_is_free(full, monkeypatch):
    version = full.engine.bank.version
    runs = count_runs(monkeypatch)
    report = full.add(topics())
    assert runs == []
    assert set(report.unchanged) == {d["id"] for d in topics()} == set(report.ids)
    assert (report.added, report.updated, report.tokens) == ((), (), 0)
    assert full.engine.bank.version == version  # nothing was written either


def test_new_content_is_an_update(full, monkeypatch):
    runs = count_runs(monkeypatch)
    report = full.add([*topics(7), {"id": "meteor", "text": about("saffron")}])
    assert report.updated == ("meteor",) and len(report.unchanged) == 7 and report.added == ()
    assert len(runs) == 1
    assert full.get("meteor")[0].text == about("saffron")
    assert full.stats().documents == 8
    assert "meteor" in [hit.id for hit in full.retrieve(about("saffron"), 2)]


def test_new_title_is_new_content(memory):
    memory.add({"id": "a", "text": "same"})
    assert memory.add({"id": "a", "text": "same", "title": "T"}).updated == ("a",)


def test_new_metadata_do_not_run_the_backbone(full, monkeypatch):
    before = full.retrieve(about("violin"), 3)
    runs = count_runs(monkeypatch)
    report = full.add([{**d, "metadata": {"year": n}} for n, d in enumerate(topics())])
    assert runs == [] and report.tokens == 0
    assert set(report.updated) == {d["id"] for d in topics()}
    after = full.retrieve(about("violin"), 3)
    assert [(h.id, h.score, h.text) for h in after] == [(h.id, h.score, h.text) for h in before]
    assert [h.id for h in full.retrieve("x", filter={"year": 3})] == ["violin"]


def test_new_metadata_keep_the_content_that_is_read(tmp_path, backbone, adapter):
    with opened(tmp_path, backbone, adapter, reading="kv") as memory:
        memory.add(topics(3))
        answer = memory.ask("the glacier", max_new_tokens=6)
        memory.add([{**d, "metadata": {}} for d in topics(3)])
        again = memory.ask("the glacier", max_new_tokens=6)
    assert (again.text, [s.id for s in again.sources]) == (answer.text, [s.id for s in answer.sources])


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ({"a": (1, 2)}, {"a": [1, 2]}, True),
        ({"a": {1: "x"}}, {"a": {"1": "x"}}, True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": True}, {"a": 1}, False),
        ({"a": 1}, {"a": 1.0}, False),
        ({"a": None}, {}, False),
    ],
)
def test_metadata_are_compared_as_they_are_stored(memory, old, new, same):
    memory.add({"id": "a", "text": "x", "metadata": old})
    report = memory.add({"id": "a", "text": "x", "metadata": new})
    assert (report.unchanged, report.updated) == ((("a",), ()) if same else ((), ("a",)))


def test_the_same_document_twice_is_stored_once(memory, monkeypatch):
    runs = count_runs(monkeypatch)
    report = memory.add(["one text", "one text", {"text": "one text"}])
    assert len(report.added) == 1 and report.unchanged == ()
    assert len(runs) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"id": "a", "text": "other"},
        {"id": "a", "text": "x", "title": "T"},
        {"id": "a", "text": "x", "metadata": {"k": 1}},
    ],
    ids=["text", "title", "metadata"],
)
def test_one_id_for_two_documents_is_refused_as_a_whole(memory, monkeypatch, other):
    runs = count_runs(monkeypatch)
    with pytest.raises(errors.DuplicateDocumentError, match="'a'"):
        memory.add(["before", {"id": "a", "text": "x"}, other, "after"])
    assert runs == []
    assert list(memory.ids()) == []


def test_a_sequence_is_validated_before_anything_is_encoded(memory, monkeypatch):
    runs = count_runs(monkeypatch)
    with pytest.raises(errors.InvalidDocumentError):
        memory.add(["good", "  "])
    assert runs == [] and memory.stats().documents == 0


def test_invalid_documents_can_be_skipped(memory):
    documents = ["good", "", {"id": "blank", "text": " \n"}, {"text": 5}, None, Document("d", "\ud800"), "fine"]
    for given in (documents, iter([f"{d} again" if d in ("good", "fine") else d for d in documents])):
        report = memory.add(given, on_invalid="skip")
        assert len(report.added) == 2
        assert [name for name, _ in report.skipped] == ["document 1", "blank", "document 3", "document 4", "d"]
        assert all(reason for _, reason in report.skipped)


def test_on_invalid_takes_two_words_only(memory):
    with pytest.raises(errors.ConfigError, match="on_invalid"):
        memory.add("x", on_invalid="ignore")


def test_progress_counts_every_document_once(memory):
    memory.add(topics(2))
    seen = []
    documents = [*topics(4), topics(1)[0], "", {**topics(1)[0], "id": "extra"}]
    documents[1] = {**documents[1], "metadata": {"new": True}}  # known, unchanged, metadata, twice, invalid and new
    report = memory.add(documents, on_progress=seen.append, on_invalid="skip")
    assert [p.documents for p in seen] == [1, 2, 3, 4, 5]
    assert {p.total for p in seen} == {5}  # what is left out is not waited for
    assert seen[-1].tokens == report.tokens > 0
    assert [p.tokens for p in seen] == sorted(p.tokens for p in seen)


def test_progress_of_a_generator_has_no_total(memory):
    seen = []
    memory.add((d for d in topics(3)), on_progress=seen.append)
    assert [(p.documents, p.total) for p in seen] == [(1, None), (2, None), (3, None)]


def test_an_error_in_on_progress_stops_the_add(memory):
    def stop(progress):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        memory.add(topics(), on_progress=stop)
    assert memory.add(topics()).added  # and leaves the memory usable


def test_no_documents_give_an_empty_report(memory):
    version = memory.engine.bank.version
    for nothing in ([], (), iter([]), {}.keys()):
        report = memory.add(nothing)
        assert (report.ids, report.skipped, report.tokens) == ((), (), 0)
    assert memory.engine.bank.version == version


@pytest.mark.parametrize("wrong", [5, None, b"bytes", object], ids=repr)
def test_what_is_not_documents_is_refused(memory, wrong):
    with pytest.raises(errors.InvalidDocumentError):
        memory.add(wrong)


@pytest.mark.slow
def test_a_generator_is_committed_as_it_goes(tmp_path, backbone, adapter):
    lags, alive = [], []
    bounds = {"segment_documents": 40, "batch_tokens": 64}
    with opened(tmp_path, backbone, adapter, **bounds) as memory, opened(tmp_path, backbone, adapter) as other:

        def documents():
            for number in range(1200):
                if number % 100 == 99:
                    other.refresh()
                    lags.append(number - other.stats().documents)
                    alive.append(sum(type(o) is EncodedDocument for o in gc.get_objects()))
                yield f"document number {number} of many"

        assert len(memory.add(documents()).added) == 1200
    # How far the generator runs ahead: one look-up's worth of ids, sixteen batches, and what waits for its commit.
    assert max(lags) < 256 + 16 * 64 // 20 + 40
    assert lags[-1] < 1200 - 400
    assert max(alive) < 200  # of 1,200; what other tests left for the garbage collector counts too


@pytest.mark.slow
def test_what_was_committed_before_an_error_stays(tmp_path, backbone, adapter):
    def documents():
        for number in count():
            if number == 700:
                raise OSError("the network went away")
            yield f"document number {number} of many"

    with opened(tmp_path, backbone, adapter, segment_documents=40, batch_tokens=64) as memory:
        with pytest.raises(OSError, match="network") as caught:
            memory.add(documents())
        assert type(caught.value) is OSError  # the caller's own error, not renamed
        kept = set(memory.ids())
        assert 300 < len(kept) < 700
    with opened(tmp_path, backbone, adapter) as memory:
        assert set(memory.ids()) == kept
        assert memory.verify().ok
        report = memory.add(f"document number {number} of many" for number in range(700))
        assert set(report.unchanged) == kept and len(report.ids) == 700


@pytest.mark.slow
def test_a_duplicate_late_in_a_generator_keeps_what_was_committed(tmp_path, backbone, adapter):
    with opened(tmp_path, backbone, adapter, segment_documents=10, batch_tokens=16) as memory:
        numbered = ({"id": str(n % 600), "text": f"document number {n} of many"} for n in range(700))
        with pytest.raises(errors.DuplicateDocumentError, match="'0'"):
            memory.add(numbered)
        assert 0 < memory.stats().documents <= 600


def test_segments_are_bounded_by_bytes_too(tmp_path, backbone, adapter):
    commits = []
    with opened(tmp_path, backbone, adapter, segment_bytes=4000) as memory:
        commit = memory.engine.bank.commit
        memory.engine.bank.commit = lambda docs, namespace: commits.append(len(docs)) or commit(docs, namespace)
        memory.add(topics())
    assert sum(commits) == 8 and len(commits) > 1


def test_update_needs_a_known_id(memory):
    with pytest.raises(errors.UnknownDocumentError, match="'nobody'"):
        memory.update({"id": "nobody", "text": "x"})
    with pytest.raises(errors.UnknownDocumentError):
        memory.update("a new text has a new id")
    assert memory.stats().documents == 0
    memory.add({"id": "a", "text": "x"})
    assert memory.update({"id": "a", "text": "y"}).updated == ("a",)
    assert memory.update({"id": "a", "text": "y"}).unchanged == ("a",)
    with pytest.raises(errors.InvalidDocumentError):
        memory.update({"id": "a", "text": ""})
    assert memory.get("a")[0].text == "y"


def test_update_sees_what_another_handle_stored(tmp_path, memory, backbone, adapter):
    with opened(tmp_path, backbone, adapter) as other:
        other.add({"id": "a", "text": "x"})
    assert memory.update({"id": "a", "text": "y"}).updated == ("a",)


def test_get_keeps_the_order_and_leaves_out_the_unknown(memory):
    memory.add(topics(3))
    found = memory.get(["glacier", "no such", "lighthouse", "glacier"])
    assert [d.id for d in found] == ["glacier", "lighthouse", "glacier"]
    assert memory.get("no such") == memory.get([]) == memory.get("\ud800") == []


def test_ids_are_all_there_is_over_several_pages(memory):
    names = [f"{n:04}" for n in range(2001)]
    encoded = next(memory.engine.encoder.encode([Document("x", "y")]))
    bank = memory.engine.bank
    bank.commit([replace(encoded, document=Document(name, "y")) for name in names], "default")
    assert list(memory.ids()) == names


def test_delete_tells_what_was_there(memory):
    memory.add(topics(3))
    report = memory.delete(["glacier", "no such", "glacier", "\ud800", ""])
    assert report.deleted == ("glacier",) and report.missing == ("no such", "\ud800", "")
    assert memory.delete("glacier").missing == ("glacier",)
    assert memory.delete([]).deleted == memory.delete([]).missing == ()
    assert "glacier" not in list(memory.ids()) and memory.get("glacier") == []
    assert "glacier" not in [hit.id for hit in memory.retrieve(about("glacier"))]
    assert memory.add(topics(3)).added == ("glacier",)


@pytest.mark.parametrize("wrong", [5, None, [5], ["a", None], [b"a"]], ids=repr)
def test_ids_are_strings(memory, wrong):
    for call in (memory.delete, memory.get):
        with pytest.raises(errors.InvalidQueryError, match="ids are strings"):
            call(wrong)


def test_int8_routing_keys_halve_the_keys_and_find_the_same(tmp_path, backbone, adapter):
    found, sizes = {}, {}
    for dtype in ("float16", "int8"):
        with opened(tmp_path / dtype, backbone, adapter, keys_dtype=dtype) as memory:
            memory.add(topics())
            found[dtype] = [[(h.id, h.score) for h in memory.retrieve(about(t), k=3)] for t in TOPICS]
            block = next(memory.engine.bank.select("default").key_blocks("shared"))
            sizes[dtype] = block.keys.nbytes
            memory.update({**topics(1)[0], "metadata": {"changed": True}})  # stores the latents again as they are
            assert memory.retrieve(about(TOPICS[0]), k=1)[0].metadata == {"changed": True}
    assert sizes["int8"] * 2 == sizes["float16"]
    assert [row[0][0] for row in found["int8"]] == [row[0][0] for row in found["float16"]]
    for one, other in zip(found["int8"], found["float16"], strict=True):
        assert one[0][1] == pytest.approx(other[0][1], abs=0.02)
    with pytest.raises(errors.FingerprintMismatchError, match="keys int8"):
        opened(tmp_path / "int8", backbone, adapter)


@pytest.mark.parametrize("reading", ["kv", "latent"])
@pytest.mark.parametrize(("eight", "off"), [("float8_e4m3fn", 1 / 16), ("int8", 1 / 250)])
def test_content_in_eight_bits_halves_it_or_more_and_is_read(tmp_path, backbone, reading, eight, off):
    adapter, sizes, answers, numbers = tiny_adapter(backbone, read_latent=True), {}, {}, {}
    layer = 0 if reading == "kv" else 2
    for dtype in ("auto", eight):
        long = {"id": "long", "text": " ".join(about(t) for t in TOPICS)}
        with opened(tmp_path / dtype, backbone, adapter, reading=reading, content_dtype=dtype, window=128) as memory:
            memory.add([*topics(), long])
            answers[dtype] = memory.ask("the glacier", max_new_tokens=4)
            sizes[dtype] = memory.engine.bank.latents(1).content[layer].nbytes
            numbers[dtype] = memory.engine.bank.content([9], layer)[0].float()  # of a document with several windows
    assert sizes[eight] * backbone.dtype.itemsize == sizes["auto"]
    assert [s.id for s in answers["auto"].sources] == [s.id for s in answers[eight].sources]
    assert answers[eight].trace.new_tokens > 0
    largest = numbers["auto"].abs().amax((0, 3), keepdim=True)  # of K and of V, by head
    assert bool(((numbers[eight] - numbers["auto"]).abs() <= largest * off).all())
    with pytest.raises(errors.FingerprintMismatchError, match=f"content {eight}"):
        opened(tmp_path / eight, backbone, adapter, reading=reading, window=128)
