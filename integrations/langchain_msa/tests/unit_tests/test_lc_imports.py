"""This integration imports nothing of the other one, and a missing extra is named."""

from __future__ import annotations

import subprocess
import sys

import pytest

import langchain_msa

CODE = """
import sys
sys.modules["langgraph"] = None
import langchain_msa
try:
    langchain_msa.MSAStore
except ImportError as error:
    print(type(error).__name__, "langchain-msa[langgraph]" in str(error))
print(*sys.modules)
"""


@pytest.mark.slow
def test_it_imports_nothing_of_the_other_one_and_names_a_missing_extra():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    said, modules = done.stdout.splitlines()
    assert said == "MissingExtraError True"
    assert "langchain_msa.chat_models" in modules.split()
    assert [name for name in modules.split() if name.startswith("llama_index")] == []


def test_all_names_are_there():
    assert all(getattr(langchain_msa, name).__doc__ for name in langchain_msa.__all__)
