"""The architecture is tested: import contracts, file sizes, the frozen public surface, and what never may appear."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import msa_plugin
from msa_plugin.memory import LatentMemory

ROOT = Path(__file__).resolve().parents[1]
TOPS = (ROOT / "src", ROOT / "kernels", *sorted(ROOT.glob("integrations/*/l*")))
SOURCES = sorted(path for top in TOPS for path in top.rglob("*.py"))
FACADE = {
    "add", "aadd", "update", "aupdate", "delete", "adelete", "get", "ids", "retrieve", "aretrieve", "ask", "aask",
    "stream", "astream", "compact", "acompact", "snapshot", "asnapshot", "drop_snapshot", "verify", "averify", "stats",
    "refresh", "close", "open", "engine", "config", "chat", "achat", "stream_chat", "astream_chat", "routing_keys",
    "score_bounds", "count_tokens", "within", "below", "namespaces", "labels", "documents", "revise", "aget",
    "explain", "aexplain", "forget_expired", "add_turns", "aadd_turns", "turns_around",
    "path", "version", "model_name", "context_window", "tokenize", "metadata", "writing", "check_relevance",
}  # fmt: skip


def test_import_contracts():
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", code, "--no-logo"], cwd=ROOT, capture_output=True, text=True)
    if "No module named 'importlinter'" in done.stderr:
        pytest.skip("import-linter is not installed: pip install -e '.[lint]'")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_one_idea(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    forbidden = r"torch\.load\(|import pickle|pickle\.load|trust_remote_code=True|[^.a-z_]eval\(|TODO|FIXME"
    assert not re.search(forbidden, text)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_python_3_10_lacks_is_not_imported_at_run_time(path):
    later = {
        "typing": {"Unpack", "Self", "Never", "NotRequired", "Required", "LiteralString", "assert_never", "override"},
        "enum": {"StrEnum"},
        "datetime": {"UTC"},
        "asyncio": {"TaskGroup", "timeout", "Runner"},
        "itertools": {"batched"},
    }
    imports = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    assert [n.name for node in imports for n in node.names if n.name in later.get(node.module or "", ())] == []


def test_kernels_shadow_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_the_public_surface_is_settled():
    public = {name for name in dir(LatentMemory) if not name.startswith("_")}
    assert public == FACADE
    for name in msa_plugin.__all__:
        assert getattr(msa_plugin, name)
    with pytest.raises(AttributeError):
        msa_plugin.nothing  # noqa: B018


def test_the_two_lines_of_the_architecture_are_short() -> None:
    """Each is followed in at most twelve files that there are, none of them twice."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for line in ("add", "ask"):
        [text] = re.findall(rf"^\*\*{line}:\*\* (.*?)\n\n", page, re.MULTILINE | re.DOTALL)
        files = re.findall(r"`(\w+(?:/\w+)*\.py)`", text.replace("`shared_names.py`", ""))
        assert 5 < len(files) <= 12 and len(set(files)) == len(files)
        assert [name for name in files if not (ROOT / "src" / "msa_plugin" / name).is_file()] == []


def test_every_class_name_stands_once():
    """One word for one thing: a name that two modules define is looked up twice by whoever reads."""
    homes = defaultdict(list)
    for folder in ("src/msa_plugin", "kernels/msa_kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
                homes[name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}
