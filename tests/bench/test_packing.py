"""A packed run: no texts, and the same tables."""

from __future__ import annotations

import shutil

import pytest
from fakes import Fakes, config, numbers, run, toy
from pack_run import pack
from typer.testing import CliRunner

from msa_plugin.bench.recompute import recompute
from msa_plugin.bench.scoring import ranked
from msa_plugin.bench.store import Results
from msa_plugin.cli.app import app
from msa_plugin.errors import ConfigError


@pytest.fixture(scope="module")
def done(tmp_path_factory, backbone):
    folder = tmp_path_factory.mktemp("done")
    data = toy(folder / "toy")
    for part in ("retrieval", "qa"):
        run(backbone, Fakes(), config(folder / "out", data, part))
    return folder / "out"


def test_rows_are_recomputed_from_it(done, tmp_path):
    small = pack(done, tmp_path / "small")
    assert {p.name for p in small.iterdir()} == {"results.jsonl", "config.json", "questions.tar.xz"}
    everything = Results(done).rows()
    with Results(small) as results:
        results.rewrite([r for r in everything if r.metric not in ("nDCG@10", "F1")])
    recompute(small)
    assert numbers(Results(small).rows()) == numbers(everything)
    [kept, *_] = Results(small).questions("retrieval", "toy", "words")
    whole = {r["id"]: ranked(r) for r in Results(done).questions("retrieval", "toy", "words")}
    ids = whole[kept["id"]]
    assert kept["places"] == {name: ids.index(name) + 1 for name in kept["positives"] if name in ids}


def test_what_a_prefilter_is_compared_with_is_kept_whole(tmp_path):
    with Results(tmp_path / "out") as results:
        for system in ("msa", "msa+faiss:2", "bm25"):
            records = [{"id": "q", "positives": {"a": 1}, "wall": 1.0, "ranking": [["b", 2.0], ["a", 1.0]]}]
            results.add_questions("retrieval", "toy", system, records)
        results.rewrite([])
    small = Results(pack(tmp_path / "out", tmp_path / "small"))
    kept = {name: small.questions("retrieval", dataset, name)[0] for dataset, name in small.question_sets("retrieval")}
    assert [kept[name].get("ranking") for name in ("msa", "msa+faiss:2")] == [[["b"], ["a"]]] * 2
    assert kept["bm25"]["places"] == {"a": 2} and [ranked(record)[1] for record in kept.values()] == ["a"] * 3


def test_it_holds_no_text_and_is_the_same_every_time(done, tmp_path):
    first, second = pack(done, tmp_path / "first"), pack(done, tmp_path / "second")
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)
    for part in ("retrieval", "qa"):
        assert any("text" in r for r in Results(done).questions(part, "toy", "msa"))
        records = Results(first).questions(part, "toy", "msa")
        assert len({r["id"] for r in records}) == 8
        assert not [r for r in records if {"text", "queries"} & set(r)]


def test_it_is_not_run_on_and_not_packed_over(done, tmp_path, backbone):
    small = pack(done, tmp_path / "small")
    with pytest.raises(ConfigError, match="packed run"):
        run(backbone, Fakes(), config(small, toy(tmp_path / "unread")))
    with pytest.raises(ConfigError, match="holds something"):
        pack(done, small)
    with pytest.raises(ConfigError, match=r"no results\.jsonl"):
        pack(tmp_path / "none", tmp_path / "other")
    file = small / "questions.tar.xz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="cannot be unpacked"):
        recompute(small)


def test_the_command(done, tmp_path):
    small = pack(done, tmp_path / "small")
    assert CliRunner().invoke(app, ["bench", "report", str(small)]).exit_code == 0
    before = (small / "report.md").read_text()
    shutil.rmtree(small / "plots")
    assert CliRunner().invoke(app, ["bench", "report", str(small), "--recompute"]).exit_code == 0
    assert (small / "report.md").read_text() == before


def test_what_is_packed_already_is_kept(done, tmp_path):
    small = pack(done, tmp_path / "small")
    again = pack(small, tmp_path / "again")
    files = sorted(p.relative_to(small) for p in small.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((small / f).read_bytes() == (again / f).read_bytes() for f in files)
