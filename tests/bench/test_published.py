"""What docs/results holds: small, without texts of data sets; its tables come out of what is kept of each question."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from msa_plugin.bench.recompute import recompute
from msa_plugin.bench.report import write_report
from msa_plugin.bench.store import PACKED, Results

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "results"
FOLDERS = sorted(path for path in PUBLISHED.iterdir() if path.is_dir())
MADE_AGAIN = {"report.html", ".lock"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_published_run_is_small_and_holds_no_texts(folder):
    found = {path.name for path in folder.iterdir()} - MADE_AGAIN
    assert found == {"report.md", "results.jsonl", "config.json", "plots", PACKED}
    assert (folder / PACKED).stat().st_size <= 2_000_000
    results = Results(folder)
    sets = [(part, *names) for part in ("retrieval", "qa") for names in results.question_sets(part)[:2]]
    records = [record for names in sets for record in results.questions(*names)]
    assert not [r for r in records if {"text", "queries"} & set(r)]


def test_all_of_it_is_a_few_megabytes():
    assert sum(path.stat().st_size for path in PUBLISHED.rglob("*") if path.name not in MADE_AGAIN) < 8_000_000


def said(row):
    """A row without the last bits of its value, which depend on the order of adding."""
    return repr(replace(row, value=float(f"{row.value:.12g}")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["answers", "needles", "growth"])
def test_published_tables_come_out_the_same(name, tmp_path):
    folder = shutil.copytree(PUBLISHED / name, tmp_path / name)
    before = Results(folder).rows()
    assert recompute(folder) > 100
    assert sorted(map(said, Results(folder).rows())) == sorted(map(said, before))
    write_report(folder)
    assert (folder / "report.md").read_text() == (PUBLISHED / name / "report.md").read_text()
