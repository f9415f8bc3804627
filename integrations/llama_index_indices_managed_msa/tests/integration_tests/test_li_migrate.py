"""The migration guide's code: each pair runs, differs only where the index is made, and stands in the guide."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from llama_index.core import Settings

from msa_plugin.memory import LatentMemory

HERE = Path(__file__).parent / "migrate"
DOCS = Path(__file__).resolve().parents[4] / "docs"
PAIRS = ("query", "retriever", "storage", "pipeline")
MARK = "# unchanged from here on\n"


@pytest.fixture(autouse=True)
def no_global_models(monkeypatch):
    """Here the "before" files set global models, as applications do."""
    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.setattr(Settings, "_embed_model", None)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a file in an empty folder and gives its globals; memories it opened are closed afterwards."""
    opened, open_ = [], LatentMemory.open
    monkeypatch.setattr(LatentMemory, "open", lambda *a, **k: opened.append(open_(*a, **k)) or opened[-1])
    monkeypatch.chdir(tmp_path)
    yield lambda name: runpy.run_path(str(HERE / f"{name}.py"))
    for memory in opened:
        memory.close()


@pytest.mark.parametrize("pair", PAIRS)
def test_only_the_construction_changes(pair):
    before, after = ((HERE / f"{pair}_{when}.py").read_text(encoding="utf-8") for when in ("before", "after"))
    assert before.count(MARK) == after.count(MARK) == 1
    assert before.split(MARK)[1] == after.split(MARK)[1]


@pytest.mark.parametrize("file", sorted(HERE.glob("*.py")), ids=lambda f: f.stem)
def test_the_guide_shows_the_code_that_runs(file):
    guides = [guide.read_text(encoding="utf-8") for guide in sorted(DOCS.glob("migrate*.md"))]
    code = f"```python\n{file.read_text(encoding='utf-8')}```"
    assert any(code in guide for guide in guides), f"{file.name} is not in the guide as it is"


@pytest.mark.parametrize("pair", PAIRS)
def test_before(pair, run):
    assert run(f"{pair}_before")["index"]


@pytest.mark.slow
def test_after_a_query(run):
    app = run("query_after")
    assert "1821" in str(app["answer"])
    assert [name for name, _, _ in app["sources"]] == ["mill::0", "lighthouse::0"]


@pytest.mark.slow
def test_after_a_retriever(run):
    app = run("retriever_after")
    assert [n.node_id for n in app["answer"].source_nodes] == ["mill::0"]
    assert "Anna Veld built the Kestrel Mill" in str(app["answer"])  # MockLLM repeats its prompt


@pytest.mark.slow
def test_after_storage(run):
    app = run("storage_after")
    assert app["refreshed"] == [True, True]
    assert set(app["again"].ref_doc_info) == {"mill"}


@pytest.mark.slow
def test_after_a_pipeline(run):
    assert [n.node_id for n in run("pipeline_after")["found"]] == ["mill::0"]


@pytest.mark.slow
async def test_after_an_agent(run):
    app = run("agent_after")
    for message in app["messages"]:
        await app["memory"].aput(message)
    recalled = await app["memory"].aget(input="Who built the mill?")
    assert "Anna Veld built it in 1821" in recalled[0].content


@pytest.mark.slow
def test_a_router_engine_over_two_namespaces(run):
    app = run("router_after")
    assert app["sources"] == ["ferry::0"] and str(app["answer"]).strip()


@pytest.mark.slow
def test_a_sub_question_engine_over_two_namespaces(run):
    app = run("subquestion_after")
    assert app["sources"][-2:] == ["mill::0", "ferry::0"] and str(app["answer"]) == "Anna Veld; at noon."
    asked = [node.text for node in app["answer"].source_nodes[:2]]
    assert "Anna Veld" in asked[0] and "noon" in asked[1]
