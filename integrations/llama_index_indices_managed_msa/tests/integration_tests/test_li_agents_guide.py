"""LlamaIndex's program of the guide to agents; that the guide shows it as it is, test_agents_guide.py says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from msa_plugin.backbone.backbone import Backbone


@pytest.mark.slow
def test_an_agent_in_a_workflow_recalls_another_visit(tmp_path, monkeypatch, real_backbone):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Backbone, "load", classmethod(lambda cls, *args, **kwargs: real_backbone))
    app = runpy.run_path(str(Path(__file__).parent / "agents" / "workflow.py"))
    assert "Pim" not in app["monday"][2] and len(app["monday"]) == 3
    [friday] = app["friday"]
    assert "My dog is called Pim" in friday and friday.endswith("What is the name of my dog?")
