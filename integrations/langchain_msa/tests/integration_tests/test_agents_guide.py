"""The programs of the guide to agents: they run, they do what the guide says, and the guide shows exactly them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from msa_plugin import dates
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.conversations import day

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
PROGRAMS = sorted(ROOT.glob("integrations/*/tests/integration_tests/agents/*.py"))
SHOWN = re.compile(r"<!-- (integrations/\S+\.py) -->\n+```python\n(.*?)```", re.DOTALL)


def test_the_guide_shows_the_programs_that_are_tested():
    shown = dict(SHOWN.findall((ROOT / "docs" / "agents.md").read_text(encoding="utf-8")))
    assert shown == {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in PROGRAMS}


@pytest.fixture
def run(tmp_path, monkeypatch, real_backbone):
    """Runs a program in an empty folder; the backbone is loaded once for all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Backbone, "load", classmethod(lambda cls, *args, **kwargs: real_backbone))
    return lambda name: runpy.run_path(str(HERE / "agents" / name))


@pytest.mark.slow
def test_a_graph_remembers_across_threads_and_restarts(run):
    found = run("graph.py")
    assert found["monday"][1] == "Tell me more." and len(found["monday"]) == 4
    assert found["friday"] == ["What is the name of my dog?", "My dog is called Pim."]
    assert found["stranger"] == ["What is the name of my dog?", "Tell me more."]


@pytest.mark.slow
def test_an_agent_recalls_what_its_visitor_said(run):
    today = day(dates.clock())
    found = run("agent.py")
    assert found["state"]["messages"][-1].text == "Pim."
    assert found["stored"] == [
        f"[{today}] user: My dog is called Pim.\nassistant: Noted.",
        f"[{today}] user: What is the name of my dog?\nassistant: Pim.",
    ]
