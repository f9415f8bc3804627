"""Every public entry of the facade, attacked by a tenant: it behaves as if the other tenant did not exist."""

import inspect
import logging
import shutil

import pytest
import tenants
from tenants import ACME, BARE, BOLT, BREAKOUTS, EVERYTHING, GUESSED, QUESTION, outcome

from facade import KINDS, opened
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.memory import LatentMemory
from test_repo_shape import FACADE
from tiny import tiny_adapter

BRIEF = {"max_new_tokens": 3, "max_rounds": 2}
HELLO = [{"role": "user", "content": f"What does {ACME} say about the ledger?"}]
SAME = tenants.of_acme()[0]  # word for word what ACME stores under an id that both use
TURNS = [{"role": "user", "content": BARE}, {"role": "assistant", "content": SAME["text"]}]
FOREIGN = tenants.of_acme()[2]  # under an id that only ACME uses


def progress(memory, documents):
    """What an `add` tells while it runs, and its report."""
    told = []
    return memory.add(documents, on_progress=told.append), told


def then(call):
    """An action without a result, and how the memory looks afterwards."""
    return lambda m: (call(m), list(m.ids()), m.get(GUESSED), m.retrieve(QUESTION, 50), m.stats())


ADDS = [SAME, FOREIGN, BARE, f"{BARE} 1", [{"id": "own", "text": SAME["text"]}, {"id": "new", "text": BARE}]]
READS = [{"documents": ids} for ids in ([], GUESSED, ["acme-plan"], ["nobody"], ["ledger"])] + [
    {"filter": where} for where in (EVERYTHING["filter"], *BREAKOUTS)
]
ATTACKS = {
    "add": [lambda m, d=d: progress(m, d) for d in ADDS],
    "aadd": [lambda m, d=d: m.aadd(d) for d in ADDS],
    "update": [lambda m, d=d: m.update(d) for d in (SAME, FOREIGN, {"id": "nobody", "text": "x"})],
    "aupdate": [lambda m, d=d: m.aupdate(d) for d in (SAME, FOREIGN)],
    "add_turns": [lambda m: (m.add_turns(TURNS, session="ledger", at="2026-01-01"), list(m.ids()))],
    "aadd_turns": [lambda m: m.aadd_turns(TURNS, session="ledger", at="2026-01-01")],
    "turns_around": [lambda m, i=i: m.turns_around(i, 50) for i in (GUESSED[0], "own")],
    "forget_expired": [then(lambda m: m.forget_expired())],
    "explain": [lambda m, i=i: m.explain(QUESTION, i) for i in ("own", GUESSED[0], "nobody")],
    "aexplain": [lambda m, i=i: m.aexplain(QUESTION, i) for i in ("own", GUESSED[0])],
    "delete": [then(lambda m, i=i: m.delete(i)) for i in (GUESSED, "acme-plan", "nobody", "%", "ledger' OR '1'='1")],
    "adelete": [lambda m: m.adelete(GUESSED)],
    "get": [lambda m, i=i: m.get(i) for i in (GUESSED, "acme-plan", "nobody", "%", "_cme-plan", "acme-plan\x00")],
    "ids": [lambda m: m.ids()],
    "retrieve": [
        lambda m: m.retrieve(SAME["text"], 50),
        lambda m: m.retrieve([QUESTION, FOREIGN["text"]], 10**9),
        *(lambda m, w=w: m.retrieve(QUESTION, 50, filter=w) for w in (EVERYTHING["filter"], *BREAKOUTS)),
    ],
    "aretrieve": [lambda m: m.aretrieve(SAME["text"], 50), lambda m: m.aretrieve(QUESTION, 50, filter=BREAKOUTS[1])],
    "ask": [lambda m, o=o: m.ask(QUESTION, **o, **BRIEF) for o in ({}, *READS)],
    "aask": [lambda m, o=o: m.aask(QUESTION, **o, **BRIEF) for o in READS[:4]],
    "stream": [lambda m, o=o: m.stream(QUESTION, **o, **BRIEF).events() for o in ({}, *READS[:4])],
    "astream": [lambda m, o=o: m.astream(QUESTION, **o, **BRIEF) for o in ({}, READS[1], READS[-1])],
    "chat": [lambda m: m.chat(HELLO, max_new_tokens=3)],
    "achat": [lambda m: m.achat(HELLO, max_new_tokens=3)],
    "stream_chat": [lambda m: m.stream_chat(HELLO, max_new_tokens=3)],
    "astream_chat": [lambda m: m.astream_chat(HELLO, max_new_tokens=3)],
    "compact": [then(lambda m: m.compact())],
    "acompact": [lambda m: m.acompact()],
    "snapshot": [then(lambda m: m.snapshot("now"))],
    "asnapshot": [lambda m: m.asnapshot("now")],
    "drop_snapshot": [lambda m: m.drop_snapshot("acme")],
    "verify": [lambda m: m.verify()],
    "averify": [lambda m: m.averify()],
    "stats": [lambda m: m.stats()],
    "refresh": [then(lambda m: m.refresh())],
    "close": [lambda m: (m.close(), m.get(GUESSED))],
    "open": [],  # test_tenants_names.py: which namespaces are which
    "engine": [lambda m: m.engine.bank.get(GUESSED, m.namespace), lambda m: m.engine.retriever.score_bounds],
    "config": [lambda m: m.config.model_dump()],
    "routing_keys": [lambda m, i=i: m.routing_keys(i) for i in (GUESSED, "acme-plan", "nobody")],
    "score_bounds": [lambda m: m.score_bounds],
    "count_tokens": [lambda m: m.count_tokens(QUESTION)],
    "path": [lambda m: m.path.name],
    "version": [lambda m: m.version > 0],  # of the whole bank: that somebody wrote can be told, not what
    "model_name": [lambda m: m.model_name],
    "context_window": [lambda m: m.context_window],
    "tokenize": [lambda m: m.tokenize(QUESTION)],
    "metadata": [lambda m, i=i: m.metadata([i]) for i in (GUESSED[0], "acme-plan", "nobody", "%", "acme-plan\x00")],
    "writing": [lambda m: m.writing().__enter__() is None],
    "check_relevance": [lambda m: m.check_relevance(0.5)],
}
TAKES_NAMESPACE = {
    "select": lambda b: [b.select(BOLT, w).documents for w in (None, EVERYTHING["filter"], *BREAKOUTS)],
    "lookup": lambda b: {name: at.content_hash for name, at in b.lookup(GUESSED, BOLT).items()},
    "get": lambda b: {name: d.document for name, d in b.get(GUESSED, BOLT).items()},
    "iter_ids": lambda b: list(b.iter_ids(BOLT)),
    "expired": lambda b: b.expired(BOLT),
    "count": lambda b: (b.count(BOLT), b.count("nobody")),
    "stats": lambda b: (b.stats(BOLT).documents, b.stats(BOLT).deleted, b.stats("nobody").tokens),
    "commit": lambda b: (b.commit([b.latents(b.lookup(["own"], BOLT)["own"].ordinal)], BOLT), list(b.iter_ids(BOLT)))[
        1
    ],
    "delete": lambda b: b.delete(GUESSED, BOLT),
    "verify": lambda b: b.verify(namespace=BOLT),
}


@pytest.fixture(scope="module")
def banks(tmp_path_factory, backbone):
    """The two worlds, to be copied: attacks change them."""
    folder = tmp_path_factory.mktemp("worlds")
    for shared in (True, False):
        tenants.populate(folder / str(shared), backbone, None, shared=shared)
    return folder


def attacked(banks, folder, backbone, attack, name):
    """The outcome of an attack in each world, ACME's view before and after it, and what the log said."""
    shutil.copytree(banks, folder / name)
    here = folder / name
    before = tenants.picture(here / "True", backbone, None)
    with_acme, without = (_attack(here / str(shared), backbone, attack) for shared in (True, False))
    after = tenants.picture(here / "True", backbone, None)
    return with_acme, without, before, after


def _attack(folder, backbone, attack):
    with opened(folder, backbone, namespace=BOLT) as bolt:
        return outcome(attack, bolt)


def test_every_entry_of_the_facade_is_attacked():
    # What spans namespaces, and what pages through one, is attacked in tests/test_memory_namespaces.py.
    spanning = {"aget", "below", "documents", "labels", "namespaces", "revise", "within"}
    assert set(ATTACKS) | spanning == FACADE == {name for name in dir(LatentMemory) if not name.startswith("_")}


@pytest.mark.parametrize("name", [n for n, attacks in ATTACKS.items() if attacks])
def test_what_a_tenant_sees_does_not_depend_on_another(banks, tmp_path, backbone, name, caplog):
    caplog.set_level(logging.DEBUG)
    for number, attack in enumerate(ATTACKS[name]):
        caplog.clear()
        seen, alone, before, after = attacked(banks, tmp_path, backbone, attack, f"{name}-{number}")
        assert seen == alone, number
        assert after == before
        assert tenants.leaks(caplog.text) == []


def test_every_method_of_the_bank_that_takes_a_namespace_keeps_to_it(banks, tmp_path, backbone):
    public = {name: call for name, call in inspect.getmembers(MemoryBank, inspect.isfunction) if name[0] != "_"}
    takes = {name for name, call in public.items() if "namespace" in inspect.signature(call).parameters}
    assert takes == set(TAKES_NAMESPACE)
    for name, attack in TAKES_NAMESPACE.items():
        seen, alone, before, after = attacked(banks, tmp_path, backbone, lambda m, a=attack: a(m.engine.bank), name)
        assert seen == alone and after == before, name


@pytest.mark.parametrize("kind", ["kv", "latent", "per layer, text", "per layer, latent"])
def test_no_way_of_reading_reaches_another_tenant(tmp_path, backbone, kind):
    routing, settings = KINDS[kind]
    adapter, seen = tiny_adapter(backbone, **routing), {}
    for shared in (True, False):
        tenants.populate(tmp_path / str(shared), backbone, adapter, shared=shared, **settings)
        with opened(tmp_path / str(shared), backbone, adapter, namespace=BOLT, **settings) as bolt:
            attacks = [*ATTACKS["ask"], *ATTACKS["stream"][:2], *ATTACKS["retrieve"], *ATTACKS["routing_keys"]]
            seen[shared] = [outcome(attack, bolt) for attack in attacks]
    assert seen[True] == seen[False]
    assert tenants.leaks(repr(seen[True]), repr([GUESSED, BREAKOUTS])) == []


def test_a_tenant_without_documents_has_none(banks, tmp_path, backbone):
    shutil.copytree(banks, tmp_path / "worlds")
    with opened(tmp_path / "worlds" / "True", backbone, namespace="newcomer") as memory:
        assert memory.retrieve(QUESTION, 50) == [] and list(memory.ids()) == [] and memory.get(GUESSED) == []
        assert "EmptyMemoryError" in outcome(lambda m: m.ask(QUESTION), memory)
        assert (memory.stats().documents, memory.stats().deleted, memory.stats().namespaces) == (0, 0, ())


def test_a_snapshot_shows_one_tenant_too(banks, tmp_path, backbone):
    seen = {}
    for shared in (True, False):
        folder = tmp_path / str(shared)
        shutil.copytree(banks / str(shared), folder)
        with opened(folder, backbone, namespace=BOLT) as bolt:
            bolt.snapshot("then")
            bolt.delete("own")
            bolt.add({"id": "late", "text": "later"})
        with opened(folder, backbone, namespace=BOLT, snapshot="then") as past:
            reads = [a for n in ("get", "ids", "retrieve", "ask", "routing_keys", "stats") for a in ATTACKS[n]]
            seen[shared] = [outcome(attack, past) for attack in reads]
            assert {"own"} < set(past.ids()) and "late" not in set(past.ids())
    assert seen[True] == seen[False]


def test_verify_names_no_document_of_another_tenant(banks, tmp_path, backbone):
    shutil.copytree(banks / "True", tmp_path / "world")
    with opened(tmp_path / "world", backbone, namespace=BOLT) as bolt:
        bolt.compact()  # one segment for both
    for file in (tmp_path / "world" / "bank" / "segments").glob("*/keys.safetensors"):
        data = bytearray(file.read_bytes())
        for at in range(len(data) // 2, len(data), 100):  # documents of both
            data[at] ^= 1
        file.write_bytes(data)
    with opened(tmp_path / "world", backbone, namespace=BOLT) as bolt:
        report = bolt.verify()
        assert not report.ok and set(report.documents) <= {"ledger", "diary", "own"} and report.documents
        assert tenants.leaks(repr(report)) == []
