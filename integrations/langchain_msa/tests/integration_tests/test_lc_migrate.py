"""The migration guide's programs: they run, they do what the guide says, and the guide shows exactly them."""

from __future__ import annotations

import difflib
import re
import runpy
from pathlib import Path

import pytest

from msa_plugin.backbone.backbone import Backbone

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
PROGRAMS = sorted((HERE / "migration").glob("*.py"))
# A comment with the program's path stands above each program in the guide.
SHOWN = re.compile(r"<!-- (integrations/langchain_msa/\S+) -->\n+```python\n(.*?)```", re.DOTALL)


def test_the_guide_shows_the_programs_that_are_tested():
    shown = dict(SHOWN.findall((ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")))
    expected = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in PROGRAMS}
    assert shown == expected


def test_only_imports_and_constructors_change():
    before, after = ((HERE / "migration" / name).read_text().splitlines() for name in ("before.py", "after.py"))
    changed = [line for line in difflib.ndiff(before, after) if line[:2] in ("- ", "+ ") and line[2:].strip()]
    kinds = ("from ", "store = ", "llm = ")
    assert len(changed) == 8 and all(line[2:].startswith(kinds) for line in changed)


@pytest.fixture
def run(tmp_path, monkeypatch, request):
    """Runs a program in an empty folder; the backbone is loaded once for all tests."""
    monkeypatch.chdir(tmp_path)
    opened = []

    def run(name):
        if name != "before.py":
            loaded = request.getfixturevalue("real_backbone")
            monkeypatch.setattr(Backbone, "load", classmethod(lambda cls, *args, **kwargs: loaded))
        found = runpy.run_path(str(HERE / "migration" / name))
        opened.append(found["store"])
        return found

    yield run
    for store in opened:
        getattr(store, "close", lambda: None)()


def test_before(run):
    assert "Anna Veld" in run("before.py")["answer"]


@pytest.mark.slow
def test_after(run):
    found = run("after.py")
    assert "Anna Veld" in found["answer"]
    assert found["retriever"].invoke("Who built the Kestrel Mill?")[0].metadata["source"] == "mill.md"


@pytest.mark.slow
def test_paired(run):
    found = run("paired.py")
    assert "Anna Veld" in found["result"]["answer"] and found["result"]["sources"][0]["id"] == "mill"
    assert "beetles" in found["routed"].content
    assert found["routed"].response_metadata["sources"][0]["id"] == "birds"
    assert {d.id for d in found["old"]} == {"mill", "trains"}


@pytest.mark.slow
def test_keep_in_step(run):
    found = run("keep_in_step.py")
    assert (found["first"]["num_added"], found["second"]["num_added"]) == (2, 1)
    assert (found["second"]["num_skipped"], found["second"]["num_deleted"]) == (1, 1)
    assert sorted(d.text for d in found["store"].memory.get(list(found["store"].memory.ids()))) == [
        "The canteen opens at noon.",
        "The office opens at eight.",
    ]
