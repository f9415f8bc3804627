"""`MetadataFilters` on the memory: before top-k, nested, and meaning what they mean in LlamaIndex's own stores."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import Document, QueryBundle, TextNode
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from facade import about, opened
from llama_index.indices.managed.msa import MSAIndex
from llama_index.llms.msa import MSALLM
from llama_index.llms.msa.filters import memory_filter
from msa_plugin.errors import InvalidDocumentError, InvalidQueryError

F, Op, All = MetadataFilter, FilterOperator, FilterCondition


def where(*filters, condition=FilterCondition.AND):
    return MetadataFilters(filters=list(filters), condition=condition)


def numbers(index, filters, question="violin", k=8, **kwargs):
    nodes = index.as_retriever(similarity_top_k=k, filters=filters, **kwargs).retrieve(question)
    return sorted(n.metadata["number"] for n in nodes)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (where(F(key="number", value=3)), [3]),
        (where(F(key="number", value=3, operator=Op.NE)), [0, 1, 2, 4, 5, 6, 7]),
        (where(F(key="number", value=5, operator=Op.GT)), [6, 7]),
        (where(F(key="number", value=5, operator=Op.GTE)), [5, 6, 7]),
        (where(F(key="number", value=2, operator=Op.LT)), [0, 1]),
        (where(F(key="number", value=2.0, operator=Op.LTE)), [0, 1, 2]),
        (where(F(key="number", value=[1, 4, 9], operator=Op.IN)), [1, 4]),
        (where(F(key="number", value=[1, 4, 9], operator=Op.NIN)), [0, 2, 3, 5, 6, 7]),
        (where(F(key="tags", value="vio", operator=Op.CONTAINS)), [3]),
        (where(F(key="tags", value=["vio", "met"], operator=Op.ANY)), [3, 7]),
        (where(F(key="tags", value=["vio", "all"], operator=Op.ALL)), [3]),
        (where(F(key="word", value="io", operator=Op.TEXT_MATCH)), [3]),
        (where(F(key="word", value="IO", operator=Op.TEXT_MATCH)), []),
        (where(F(key="word", value="IO", operator=Op.TEXT_MATCH_INSENSITIVE)), [3]),
        (where(F(key="nothing", value=None, operator=Op.IS_EMPTY)), list(range(8))),
        (where(F(key="word", value=None, operator=Op.IS_EMPTY)), []),
        (where(F(key="even", value=1)), [0, 2, 4, 6]),  # a MetadataFilter cannot hold True
        (where(F(key="even", value=0)), [1, 3, 5, 7]),
        (where(F(key="nothing", value=1, operator=Op.NE)), list(range(8))),
        (where(), list(range(8))),
        (where(F(key="even", value=1), F(key="number", value=3, operator=Op.GT)), [4, 6]),
        (where(F(key="even", value=1), F(key="number", value=6, operator=Op.GT), condition=All.OR), [0, 2, 4, 6, 7]),
        (where(F(key="even", value=1), F(key="number", value=6, operator=Op.GT), condition=All.NOT), [1, 3, 5]),
        (
            where(
                where(F(key="number", value=1), F(key="number", value=2), condition=All.OR),
                where(F(key="word", value="gla", operator=Op.TEXT_MATCH)),
            ),
            [2],
        ),
        (where(where(F(key="number", value=1), where(F(key="even", value=0))), F(key="number", value=8)), []),
    ],
)
def test_operators_and_conditions(memory, documents, filters, expected):
    for document in documents:
        document.metadata["word"] = document.id_
    assert numbers(MSAIndex.from_documents(documents, memory=memory), filters) == expected


def test_filters_apply_before_the_best_are_taken(index):
    rest = index.as_retriever(similarity_top_k=8).retrieve(about("violin"))[1:]
    assert numbers(index, where(F(key="even", value=1)), k=4) == [0, 2, 4, 6]
    last = rest[-1].metadata["number"]
    assert numbers(index, where(F(key="number", value=last)), about("violin"), k=1) == [last]


def test_whole_documents_can_be_chosen(index):
    assert numbers(index, None, doc_ids=["violin", "meteor"]) == [3, 7]
    assert numbers(index, where(F(key="even", value=1)), doc_ids=["glacier", "meteor"]) == [2]
    scanned = where(F(key="nothing", value=None, operator=Op.IS_EMPTY))
    assert numbers(index, scanned, doc_ids=["glacier"]) == [2]
    assert numbers(index, None, doc_ids=[]) == []


@pytest.mark.parametrize("key", ["doc_id", "document_id", "ref_doc_id"])
@pytest.mark.parametrize("scanned", [False, True])
def test_a_document_is_told_by_the_names_that_llama_index_stores_give_it(index, key, scanned):
    more = [F(key="nothing", value=None, operator=Op.IS_EMPTY)] if scanned else []
    others = [0, 1, 2, 4, 5, 6, 7]
    for value, operator, expected in (
        ("violin", Op.EQ, [3]),
        ("violin", Op.NE, others),
        (["violin", "meteor"], Op.IN, [3, 7]),
        (["violin"], Op.NIN, others),
    ):
        assert numbers(index, where(F(key=key, value=value, operator=operator), *more)) == expected
    within = where(where(F(key=key, value="violin"), F(key=key, value="meteor"), condition=All.OR), *more)
    assert numbers(index, within) == [3, 7]
    with pytest.raises(InvalidQueryError, match="_node_type"):
        index.as_retriever(filters=where(F(key="_node_type", value="TextNode"), *more))


def test_text_where_a_list_is_meant_is_refused(index, memory):
    with pytest.raises(InvalidQueryError, match="doc_ids= takes a list"):
        index.as_retriever(doc_ids="violin")
    with pytest.raises(InvalidQueryError, match="custom_embedding_strs= takes a list"):
        index.as_retriever().retrieve(QueryBundle("x", custom_embedding_strs="violin"))
    for lone in ("mill", TextNode(text="mill"), ["mill"]):
        with pytest.raises(InvalidDocumentError, match="takes a list"):
            index.insert_nodes(lone)
        with pytest.raises(InvalidDocumentError, match="takes a list"):
            index.refresh_ref_docs(lone)
    with pytest.raises(InvalidDocumentError, match="takes a list"):
        MSAIndex.from_documents(Document(text="mill"), memory=memory)
    with pytest.raises(InvalidQueryError, match="documents="):
        MSALLM(memory, mode="memory").complete("violin", documents=[3])
    index.delete_nodes("violin::0")
    assert len(memory.get("violin::0")) == 0 and memory.stats().documents == 7, "one id, not nine letters"


@pytest.mark.parametrize(
    "bad",
    [
        F(key="a", value=None),
        F(key="a", value=["x"]),
        F(key="a", value="x", operator=Op.IN),
        F(key="a", value=1, operator=Op.ALL),
        F(key="a", value=1, operator=Op.TEXT_MATCH),
        F(key="a", value=[1], operator=Op.GT),
    ],
)
@pytest.mark.parametrize("scanned", [False, True])
def test_values_that_an_operator_does_not_take_are_refused(index, bad, scanned):
    more = [F(key="b", value=None, operator=Op.IS_EMPTY)] if scanned else []
    with pytest.raises(InvalidQueryError, match="'a'"):
        index.as_retriever(filters=where(bad, *more))


VALUES = [0, 1, 2, -1.5, "x", "xy", "", True, False, None, [], ["x"], [1, "y"], [True]]
SCALARS = [0, 1, 2, -1.5, "x", "xy", ""]
ORDER = [Op.GT, Op.GTE, Op.LT, Op.LTE]


def leaf():
    keys, scalars = st.sampled_from("ab"), st.sampled_from(SCALARS)
    lists = st.lists(st.sampled_from([0, 1, 2]), max_size=3) | st.lists(st.sampled_from(["x", "y"]), max_size=2)
    one = st.sampled_from([Op.EQ, Op.NE, Op.CONTAINS, *ORDER])
    many = st.sampled_from([Op.IN, Op.NIN, Op.ANY, Op.ALL])
    return st.builds(lambda k, v, o: F(key=k, value=v, operator=o), keys, scalars, one) | st.builds(
        lambda k, v, o: F(key=k, value=v, operator=o), keys, lists, many
    )


TREES = st.recursive(
    leaf(),
    lambda inner: st.builds(
        lambda parts, condition: MetadataFilters(filters=parts, condition=condition),
        st.lists(inner, max_size=3),
        st.sampled_from(list(FilterCondition)),
    ),
    max_leaves=5,
)


@pytest.mark.slow
@given(tree=st.lists(TREES, min_size=1, max_size=2))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_as_sql_and_as_a_function_a_filter_means_the_same(many_values, tree):
    filters = MetadataFilters(filters=tree)
    # The second branch makes it a function and changes nothing.
    never = F(key="zzz", value="zzz", operator=Op.TEXT_MATCH)
    scanned = MetadataFilters(filters=[filters, never], condition=FilterCondition.OR)
    both = [memory_filter(filters), memory_filter(scanned)]
    assert not callable(both[0]) and callable(both[1])
    mapped, counted = ({h.id for h in many_values.retrieve("x", 1000, filter=one)} for one in both)
    assert mapped == counted


@pytest.fixture(scope="module")
def many_values(tmp_path_factory, backbone, adapter):
    with opened(tmp_path_factory.mktemp("values"), backbone, adapter) as memory:
        index = MSAIndex(memory=memory)
        pairs = [(f"{a}-{b}", {"a": x, "b": y}) for a, x in enumerate(VALUES) for b, y in enumerate(VALUES)]
        pairs += [("neither", {}), ("only", {"a": 1})]
        index.insert_nodes([TextNode(text="x", id_=name, metadata=metadata) for name, metadata in pairs])
        yield memory


@pytest.mark.parametrize("operator", [Op.EQ, Op.NE, Op.IN, Op.NIN, *ORDER])
@pytest.mark.parametrize("value", [0, 1, 2, -1.5, "x", ""])
def test_plain_operators_agree_with_llamaindexs_own_stores(many_values, operator, value):
    given = [value] if operator in (Op.IN, Op.NIN) else value
    filters = where(F(key="a", value=given, operator=operator))
    metadata = {f"{n}-0": {"a": x} for n, x in enumerate(VALUES)}
    own = build_metadata_filter_fn(metadata.__getitem__, filters)
    ours = {h.id for h in many_values.retrieve("x", 1000, filter=memory_filter(filters))}
    for name, fields in metadata.items():
        comparable = operator not in ORDER or _kind(fields["a"]) == _kind(value)  # theirs raises TypeError
        if comparable and fields["a"] is not None and not isinstance(fields["a"], bool | list):
            assert (name in ours) == own(name), (name, fields, operator, value)


def _kind(value):
    return str if isinstance(value, str) else float if isinstance(value, int | float) else math.nan
