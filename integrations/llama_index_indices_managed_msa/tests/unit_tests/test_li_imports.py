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


def loaded(code):
    """Top-level names of what `code` imports, in an interpreter of its own."""
    code += "\nimport json, sys\nprint(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_this_integration_imports_nothing_of_the_other():
    names = loaded("import llama_index.indices.managed.msa, llama_index.llms.msa")
    assert "llama_index" in names and not {n for n in names if n.startswith("langchain")}


def test_the_model_does_not_need_the_index():
    code = "import sys, llama_index.llms.msa; sys.exit('llama_index.indices.managed.msa' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    for file in (ROOT / "integrations/llama_index_llms_msa/llama_index").rglob("*.py"):
        assert "indices.managed" not in file.read_text(encoding="utf-8"), file


def test_the_core_imports_no_framework():
    assert not loaded("import msa_plugin.memory, msa_plugin.cli, msa_plugin.bench") & set(FRAMEWORKS)


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
