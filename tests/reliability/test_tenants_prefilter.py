"""An approximate index is one tenant's own: what it finds does not depend on what others store."""

import pytest
from test_tenants_scores import others

from facade import TOPICS, about, opened, use_prefilter

pytest.importorskip("faiss", reason='this needs FAISS: pip install "msa-plugin[faiss]"')
MINE = [{"id": f"{t}-{n}", "text": f"{about(t)} {n} {'x' * n}"} for t in TOPICS for n in range(8)]
QUESTIONS = [*TOPICS, *(about(t) for t in TOPICS)]


def found(memory):
    """One question at a time, as a prefilter scores them: other rows of a batch move the last digits."""
    return [[(h.id, h.score) for h in memory.retrieve(question, 4)] for question in QUESTIONS]


def prepared(memory, folder, factory):
    memory.refresh()
    use_prefilter(memory, factory, folder, memory.engine.bank.select(memory.namespace))
    return found(memory)


@pytest.mark.parametrize("factory", ["faiss:Flat@candidates=6", "faiss:IVF8,Flat@nprobe=1,candidates=6"])
def test_recall_does_not_depend_on_another_tenant(tmp_path, backbone, factory):
    with opened(tmp_path / "alone", backbone, namespace="a") as a:
        a.add(MINE)
        expected = prepared(a, tmp_path / "indices", factory)
    with (
        opened(tmp_path / "beside", backbone, namespace="a") as a,
        opened(tmp_path / "beside", backbone, namespace="b") as b,
    ):
        b.add(others(200))
        a.add(MINE)
        b.add([{"id": d["id"], "text": d["text"]} for d in MINE])  # word for word, under the same ids
        assert prepared(a, tmp_path / "indices", factory) == expected
        b.compact()  # one segment for both
        assert prepared(a, tmp_path / "indices", factory) == expected
        assert all(row for row in found(b))


def test_an_index_of_one_tenant_leads_another_nowhere(tmp_path, backbone):
    with (
        opened(tmp_path, backbone, namespace="a") as a,
        opened(tmp_path, backbone, namespace="b") as b,
    ):
        b.add(others(40))
        a.add(MINE)
        a.compact()
        b.refresh()
        exact = found(b)
        use_prefilter(b, "faiss:Flat", tmp_path / "indices", a.engine.bank.select("a"))
        assert found(b) == exact
