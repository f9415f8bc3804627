"""The documents: decisions say what became of them, and links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DECISIONS = sorted((ROOT / "docs/decisions").glob("20*.md"))
PAGES = [
    *ROOT.glob("*.md"),
    *(page for top in ("docs/**", "notebooks", "integrations/*") for page in ROOT.glob(f"{top}/*.md")),
]
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)")


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_says_when_it_was_made_and_whether_it_stands(path):
    title, blank, date, status, *_ = path.read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ") and not blank
    assert date == f"- Date: {path.name[:10]}"
    replaced = re.fullmatch(r"- Status: superseded by \[.+\]\((20.+\.md)\)( \(.+\))?", status)
    assert replaced or status == "- Status: accepted"
    if replaced:
        assert f"]({path.name})" in (path.parent / replaced[1]).read_text(encoding="utf-8").splitlines()[4]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path):
    missing = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.slow
def test_the_site_is_built_without_warnings(tmp_path):
    pytest.importorskip("sphinx", reason="pip install -e '.[docs]'")
    options = ["-q", "-W", "--keep-going", "-c", "docs", "-b", "html"]
    command = [sys.executable, "-m", "sphinx", *options, ".", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    shown = {"memory": "LatentMemory.retrieve", "langchain": "MSAVectorStore", "llama_index": "MSAIndex"}
    for page, name in shown.items():
        assert name in (tmp_path / f"docs/api/{page}.html").read_text(encoding="utf-8")
    assert len(list((tmp_path / "docs/decisions").glob("20*.html"))) == len(DECISIONS)
