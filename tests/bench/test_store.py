"""A run's folder: rows, rankings and replies that outlive a killed process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from msa_plugin.bench.result import ResultRow, Scored
from msa_plugin.bench.store import NOTE, SKIPPED, Results
from msa_plugin.config import MemoryConfig
from msa_plugin.data import jsonl
from msa_plugin.errors import ConfigError
from msa_plugin.measuring.provenance import command_line


def row(system="msa", metric="F1", value=0.5, **settings):
    return ResultRow("qa", "toy", system, metric, value, n=3, settings=settings)


@pytest.fixture
def results(tmp_path):
    with Results(tmp_path / "out", seed=4, command="msa bench qa") as opened:
        yield opened


def test_rows_carry_where_they_come_from(results):
    results.add([row(passages=5)])
    (stored,) = Results(results.out).rows()
    assert (stored.value, stored.settings, stored.seed, stored.command) == (0.5, {"passages": 5}, 4, "msa bench qa")
    assert stored.versions["python"] == sys.version.split()[0]
    assert "torch" in stored.versions
    assert "cores" in stored.hardware
    assert stored.date.endswith("Z")


def test_the_key_is_part_dataset_system_and_settings(results):
    results.add([row(passages=5, mode="x")])
    assert results.has(("qa", "toy", "msa", {"mode": "x", "passages": 5}))
    assert not results.has(("qa", "toy", "msa", {"passages": 1}))
    assert not results.has(("qa", "toy", "bm25", {"mode": "x", "passages": 5}))


def test_the_last_of_several_rows_holds_and_equal_ones_are_not_repeated(results):
    results.put([row(value=0.1), row(metric="EM", value=0.2)])
    results.put([row(value=0.1), row(metric="EM", value=0.3)])
    assert [(r.metric, r.value) for r in results.rows()] == [("F1", 0.1), ("EM", 0.3)]
    assert len(results.path.read_text().splitlines()) == 3


def test_a_skip_holds_until_the_system_ran(results):
    results.skip("qa", "toy", "dense", "no package")
    results.skip("qa", "toy", "dense", "still no package")
    results.skip("qa", "toy", "msa", "broken")
    assert [r.settings["reason"] for r in results.rows()] == ["still no package", "broken"]
    assert not results.has(("qa", "toy", "dense", {"reason": "no package"}))
    results.add([row("msa")])
    assert [(r.system, r.metric) for r in results.rows()] == [("dense", SKIPPED), ("msa", "F1")]
    results.skip("qa", "toy", "msa", "broken again")
    assert [r.metric for r in results.rows() if r.system == "msa"] == ["F1", SKIPPED]


def test_a_note_is_kept_once(results):
    results.note("qa", "toy", "two questions dropped")
    results.note("qa", "toy", "two questions dropped")
    assert [r.metric for r in results.rows()] == [NOTE]


def test_a_torn_line_is_left_out_and_rows_are_written_whole(results):
    results.add([row("bm25"), row(value=0.1)])
    results.close()
    with results.path.open("ab") as file:
        file.write(b'{"part": "qa"')
    before = results.path.read_bytes()
    assert [r.system for r in Results(results.out).rows()] == ["bm25", "msa"]
    assert results.path.read_bytes() == before  # reading changes nothing
    with Results(results.out) as again:
        again.add([row(value=0.7)])
    assert [(r.system, r.value) for r in Results(results.out).rows()] == [("bm25", 0.5), ("msa", 0.7)]


def test_a_damaged_line_in_the_middle_is_named(results):
    results.add([row()])
    results.close()
    results.path.write_text("{}x\n" + results.path.read_text())
    with pytest.raises(ConfigError, match=r"results\.jsonl, line 1"):
        Results(results.out).rows()
    results.path.write_text('{"part": "qa"}\n')
    with pytest.raises(ConfigError, match="not a result"):
        Results(results.out).rows()


def test_a_number_that_is_none_is_refused(results):
    with pytest.raises(ConfigError, match="finite"):
        results.add([row(value=float("nan"))])
    assert results.rows() == []


def test_a_write_that_the_disk_refuses_leaves_whole_lines(results, monkeypatch):
    results.add_questions("qa", "toy", "msa", [{"id": "a"}])
    path = results.question_file("qa", "toy", "msa")
    before = path.read_bytes()

    def refuse(_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="disk full"):
            results.add_questions("qa", "toy", "msa", [{"id": "b"}])
    assert path.read_bytes() == before


def test_question_files_survive_a_torn_end_and_odd_names(results):
    name = "dense:some/model+rerank"
    results.add_questions("qa", "a.b", name, [{"id": "1"}, {"id": "2", "reply": "\u2028 \udc80"}])
    path = results.question_file("qa", "a.b", name)
    assert path.parent == results.out / "questions"
    with path.open("ab") as file:
        file.write(b'{"id": "3"')
    results.add_questions("qa", "a.b", name, [{"id": "4"}])
    assert [r["id"] for r in results.questions("qa", "a.b", name)] == ["1", "2", "4"]
    assert results.question_sets("qa") == [("a.b", name)]
    assert results.questions("qa", "a.b", "other") == []


def test_a_resumed_run_must_be_the_same(results):
    results.configure("qa", {"k": 5, "seed": 1})
    results.configure("retrieval", {"k": 100})
    results.configure("qa", {"seed": 1, "k": 5})
    with pytest.raises(ConfigError, match=r"k: 5 then, 6 now.*--fresh"):
        results.configure("qa", {"k": 6, "seed": 1})
    results.add([row(), ResultRow("retrieval", "toy", "msa", "AP", 1.0)])
    results.add_questions("qa", "toy", "msa", [{"id": "1"}])
    results.configure("qa", {"k": 6, "seed": 1}, fresh=True)
    assert [r.part for r in results.rows()] == ["retrieval"]
    assert results.question_sets("qa") == []
    assert json.loads((results.out / "config.json").read_text())["parts"] == {
        "qa": {"k": 6, "seed": 1},
        "retrieval": {"k": 100},
    }


def test_a_run_goes_on_with_a_version_that_knows_more_options(tmp_path):
    memory = MemoryConfig().model_dump(mode="json")
    older = {name: value for name, value in memory.items() if name not in ("kernels", "tiers")}
    results = Results(tmp_path)
    results.configure("qa", {"k": 5, "memory": older})
    results.configure("qa", {"k": 5, "memory": memory})
    assert results.config()["parts"]["qa"]["memory"] == memory
    changed = {**memory, "tiers": {**memory["tiers"], "host_bytes": 8}}
    with pytest.raises(ConfigError, match=r"configuration \(memory\.tiers\.host_bytes: 0 then, 8 now\);"):
        results.configure("qa", {"k": 5, "memory": changed})


def test_answers_of_before_there_was_a_reader_are_not_mixed_with_its_own(tmp_path):
    memory = MemoryConfig().model_dump(mode="json")
    older = {name: value for name, value in memory.items() if name not in ("reader", "abstain_below")}
    results = Results(tmp_path)
    results.configure("qa", {"memory": older})
    with pytest.raises(ConfigError, match=r"memory\.reader: 'stock' then, 'auto' now"):
        results.configure("qa", {"memory": memory})
    results.configure("qa", {"memory": {**memory, "reader": "stock", "abstain_below": 0.0}})


def test_data_that_changed_is_noticed(results):
    results.describe("toy", {"hash": "a", "documents": 3})
    results.describe("toy", {"hash": "a", "tokens": 9})
    assert results.dataset_facts("toy") == {"hash": "a", "documents": 3, "tokens": 9}
    with pytest.raises(ConfigError, match="not the one"):
        results.describe("toy", {"hash": "b"})


def test_rankings_keep_their_order_for_tools_that_sort_by_score(results):
    import ir_measures

    ranking = [Scored("d z", 0.5), Scored("a%", 0.5), Scored("m", 0.5 + 1e-12), Scored("b", -3.0)]
    path = results.write_run("toy", "a b", {"q 1": ranking, "q2": [Scored("x", 1.0)]})
    run = list(ir_measures.read_trec_run(str(path)))
    first = [one for one in run if one.query_id == "q%201"]
    assert [one.doc_id for one in first] == ["d%20z", "a%25", "m", "b"]
    assert [one.score for one in first] == pytest.approx([0.5, 0.5, 0.5, -3.0])
    assert first[0].score > first[1].score > first[2].score
    qrels = [ir_measures.Qrel("q%201", "a%25", 1)]
    assert ir_measures.calc_aggregate([ir_measures.RR], qrels, run)[ir_measures.RR] == 0.5


def test_only_one_process_writes(results):
    results.add([row()])
    code = (
        "import sys; from pathlib import Path; from msa_plugin.bench.store import Results; "
        "Results(Path(sys.argv[1])).note('qa', 'x', 'y')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(results.out)], capture_output=True, text=True)
    assert "another process is writing" in done.stderr
    assert len(results.rows()) == 1


def test_a_command_names_no_place_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["/opt/env/bin/msa", "bench", "--data", str(tmp_path / "sets/nq"), "--out=/data/x/run", "-s"]
    words += ["msa,dense:/models/mini", "../shared", "--judge", "http://host:1/v1"]
    assert command_line(words) == "msa bench --data sets/nq --out=run -s msa,dense:mini ../shared --judge URL"


def test_an_absent_file_is_empty(tmp_path):
    assert jsonl.read(tmp_path / "none") == []
    assert Results(tmp_path / "none").rows() == []
