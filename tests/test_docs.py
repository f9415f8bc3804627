"""The documents: decisions say what became of them, and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DECISIONS = sorted((ROOT / "docs/decisions").glob("20*.md"))
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.md")]
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
