"""The core imports no framework, this integration does not import the other one, and a missing extra is named."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


FRAMEWORKS = "[m for m in sys.modules if m.partition('.')[0] in ('langchain_core', 'langchain_msa', 'llama_index')]"
LANGCHAIN = ("langchain_core", "langchain_msa")


@pytest.mark.parametrize(
    "imports",
    ["msa_plugin, msa_plugin.memory, msa_plugin.bench, msa_plugin.cli", "llama_index.indices.managed.msa"],
)
def test_others_do_not_import_langchain(imports):
    found = run(f"import sys, {imports}; print(*{FRAMEWORKS})")
    assert [name for name in found if name.startswith(LANGCHAIN)] == []
    if imports.startswith("msa_plugin"):
        assert found == []


def test_langchain_does_not_import_the_other_one():
    found = run(f"import sys, langchain_msa; print(*{FRAMEWORKS})")
    assert "langchain_msa.chat_models" in found
    assert [name for name in found if name.startswith("llama_index")] == []


def test_a_missing_extra_is_named():
    code = """
import sys
sys.modules["langgraph"] = None
import langchain_msa
try:
    langchain_msa.MSAStore
except ImportError as error:
    print(type(error).__name__, "langchain-msa[langgraph]" in str(error))
"""
    assert run(code) == ["MissingExtraError", "True"]


def test_all_names_are_there():
    import langchain_msa

    assert all(getattr(langchain_msa, name).__doc__ for name in langchain_msa.__all__)
