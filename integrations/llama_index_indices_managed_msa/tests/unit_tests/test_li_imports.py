"""The core imports no framework, LlamaIndex's side nothing of LangChain, and its LLM nothing of its index."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
FRAMEWORKS = ("langchain", "langchain_core", "langchain_classic", "langchain_msa", "llama_index")


def loaded(*steps):
    """What is imported after each step, by an interpreter of its own."""
    code = "import json, sys\n" + "".join(f"{step}\nprint(json.dumps([*sys.modules]))\n" for step in steps)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_the_model_does_not_need_the_index_and_neither_imports_anything_of_the_other_integration():
    model, both = loaded("import llama_index.llms.msa", "import llama_index.indices.managed.msa")
    assert "llama_index.llms.msa" in model and "llama_index.indices.managed.msa" not in model
    assert "llama_index.indices.managed.msa" in both and not [n for n in both if n.startswith("langchain")]
    for file in (ROOT / "integrations/llama_index_llms_msa/llama_index").rglob("*.py"):
        assert "indices.managed" not in file.read_text(encoding="utf-8"), file


@pytest.mark.slow
def test_the_core_imports_no_framework():
    [names] = loaded("import msa_plugin.memory, msa_plugin.cli, msa_plugin.bench")
    assert not {name.split(".")[0] for name in names} & set(FRAMEWORKS)


@pytest.mark.parametrize("folder", ["src", "kernels"])
def test_not_even_later(folder):
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & set(FRAMEWORKS), file


def test_the_namespace_packages_stay_open():
    inits = {
        str(f.relative_to(ROOT / "integrations")) for f in (ROOT / "integrations").glob("llama_index_*/**/__init__.py")
    }
    assert inits == {
        "llama_index_indices_managed_msa/llama_index/indices/managed/msa/__init__.py",
        "llama_index_llms_msa/llama_index/llms/msa/__init__.py",
    }
