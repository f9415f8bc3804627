"""A packed run: no texts, and the same tables."""

from __future__ import annotations

import shutil

import pytest
from fakes import Fakes, config, numbers, run, toy
from typer.testing import CliRunner

from msa_plugin.bench.packing import pack
from msa_plugin.bench.recompute import recompute
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
    assert {p.suffix for p in small.glob("*/*")} == {".gz"}
    everything = Results(done).rows()
    with Results(small) as results:
        results.rewrite([r for r in everything if r.metric not in ("nDCG@10", "F1")])
    recompute(small)
    assert numbers(Results(small).rows()) == numbers(everything)
    assert Results(small).read_run("toy", "words") == Results(done).read_run("toy", "words")


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
    [file] = (small / "runs").glob("toy.words.*")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="cannot be unpacked"):
        recompute(small)


def test_the_command(done, tmp_path):
    small = tmp_path / "small"
    assert CliRunner().invoke(app, ["bench", "report", str(done), "--pack", str(small)]).exit_code == 0
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
