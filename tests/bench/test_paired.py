"""One system against others over the questions of a whole run, and averages of sets whose passages have no titles."""

from __future__ import annotations

import json

import numpy as np
import pytest

from msa_plugin.bench.paired import paired
from msa_plugin.bench.report_parts import tables
from msa_plugin.bench.report_rows import Saved
from msa_plugin.bench.result import Scored
from msa_plugin.bench.scoring import rows_of
from msa_plugin.bench.store import Results
from msa_plugin.cli.bench import app
from msa_plugin.data.datasets import Question
from msa_plugin.errors import ConfigError

SETS = {"wiki": (1.0, 1), "news": (0.0, 2), "chunks": (0.25, 1)}  # share of passages with a title, hops
PLACES = {"good": 0, "bad": 1}  # where the right passage is; "odd" takes turns


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: 12 questions a set; "good" is always right, "bad" never at first, "odd" every other time."""
    out = tmp_path_factory.mktemp("run")
    with Results(out) as results:
        results.configure("retrieval", {"k": 20, "seed": 0})
        for name, (titled, hops) in SETS.items():
            asked = [Question(f"q{n}", "?", positives={"right": 1}, hops=hops) for n in range(12)]
            facts = {
                "documents": 9,
                "tokens": 90,
                "titled": titled,
                "hops": {str(hops): 12},
                "asked": {"retrieval": 12},
            }
            results.describe(name, facts)
            for system in ("good", "bad", "odd"):
                places = [PLACES.get(system, n % 2) for n in range(12)]
                rankings = {
                    q.id: [Scored(i, 9.0 - at) for at, i in enumerate(["wrong"] * place + ["right"])]
                    for q, place in zip(asked, places, strict=True)
                }
                records = [
                    {"id": q.id, "positives": {"right": 1}, "wall": 0.1, "ranking": rankings[q.id]} for q in asked
                ]
                results.add_questions("retrieval", name, system, records)
            results.put(rows_of(results, "retrieval", name))
    return out


def test_all_questions_of_all_sets_count_together(run):
    rows = {(r.group, r.over): r for r in paired(run, "good")}
    assert {group for group, _ in rows} == {"all", "multi-hop", "without titles"}
    found = rows["all", "odd"]
    half = (1 - 1 / np.log2(3)) / 2  # of nDCG: right at once every other time, else second
    assert (found.sets, found.questions, found.ours) == (3, 36, 1.0)
    assert found.difference == pytest.approx(half) and found.low < half < found.high
    assert found.low > 0 and found.p < 1e-4
    assert rows["multi-hop", "odd"].sets == 1
    assert (rows["without titles", "odd"].sets, rows["without titles", "odd"].questions) == (2, 24)
    assert [(r.group, r.sets, r.questions) for r in paired(run, "good", sets=["news"])] == [("these", 1, 12)] * 2
    with pytest.raises(ConfigError, match="no data set 'blogs'; there are"):
        paired(run, "good", sets=["news", "blogs"])
    back = {(r.group, r.over): r for r in paired(run, "odd")}["all", "good"]
    assert back.difference == pytest.approx(-half) and back.p == pytest.approx(found.p)


def test_equal_systems_do_not_differ_and_unknown_ones_are_refused(run):
    same = paired(run, "odd", "R@5")
    assert all((row.difference, row.p) == (0.0, 1.0) for row in same)
    with pytest.raises(ConfigError, match=r"'best' was not asked .* bad, good, odd"):
        paired(run, "best")


def test_the_report_has_a_row_of_sets_without_titles(run):
    saved = Saved.read(run)
    assert saved.untitled() == ["news", "chunks"]
    table = next(t for t in tables(saved, "retrieval") if t.title == "Retrieval, nDCG@10")
    labels = [line[0].text for line in table.rows]
    assert "average without titles (2)" in labels


def test_the_command_prints_and_gives_json(run):
    from typer.testing import CliRunner

    said = CliRunner().invoke(app, ["paired", str(run), "--system", "good", "--json"])
    assert said.exit_code == 0, said.output
    rows = json.loads(said.stdout)
    assert rows[0]["over"] == "bad" and rows[0]["group"] == "all"
    shown = CliRunner().invoke(app, ["paired", str(run), "--system", "good"])
    [_, first, *_] = shown.stdout.splitlines()
    assert first.split()[:2] == ["all", "bad"] and first.split()[-2:] == ["36", "3"]
