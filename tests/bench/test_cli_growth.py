"""`msa bench scale|latency|needle` from files to a report, on a tiny backbone."""

from __future__ import annotations

import gzip
import json

import pytest
from fakes import save_dataset
from growth_toys import corpus, distractors
from typer.testing import CliRunner

from msa_plugin.bench.store import NOTE, Results
from msa_plugin.cli.bench import app
from msa_plugin.errors import ConfigError, IngestError
from tiny import save_tiny, tiny_backbone

pytest.importorskip("bm25s", reason="needs the bench extra")


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    save_tiny(root, tiny_backbone())
    save_dataset(root / "toy", corpus())
    write(root / "more/part.jsonl.gz", [{"id": d.id, "text": d.text} for d in distractors()])
    return root


@pytest.fixture(autouse=True)
def quick_reports(request, monkeypatch):
    """Plots take seconds and have tests of their own; one run here draws them."""
    if request.node.name != "test_scale":
        monkeypatch.setattr("msa_plugin.bench.plots.figures", lambda saved: {})


@pytest.fixture
def invoke(files, tmp_path):
    def call(command, *options):
        backbone = ["--model", files / "model", "--adapter", files / "adapter", "-o", tmp_path / "out"]
        result = CliRunner().invoke(app, [str(word) for word in (command, *backbone, *options)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result, Results(tmp_path / "out").rows()

    return call


def grown(files, *options):
    data = ["-d", files / "toy", "--distractors", files / "more"]  # short options as in `msa bench qa`
    return [*data, "--sizes", "1000,2K", "-s", "msa,bm25", *options]


def test_scale(invoke, files, tmp_path):
    result, rows = invoke("scale", *grown(files, "--answers", 1))
    assert result.exit_code == 0, result.output
    quality = {(r.system, r.settings["memory_tokens"]): r for r in rows if r.metric == "nDCG@10"}
    assert set(quality) == {(s, n) for s in ("msa", "bm25") for n in (1000, 2048)}
    assert quality["bm25", 1000].value == 1.0
    assert {r.system for r in rows if r.metric == "F1"} == {"msa", "bm25"}
    assert "Degradation, nDCG@10" in result.output
    assert (tmp_path / "out/report.md").read_text(encoding="utf-8").count("Degradation") > 2
    again, same = invoke("scale", *grown(files, "--answers", 1))
    assert again.exit_code == 0
    assert [r.to_dict() for r in same] == [r.to_dict() for r in rows]


def test_scale_in_another_configuration_needs_another_folder(invoke, files):
    invoke("scale", *grown(files))
    with pytest.raises(ConfigError, match="seed"):
        invoke("scale", *grown(files, "--seed", 3))
    _, rows = invoke("scale", *grown(files, "--seed", 3, "--fresh"))
    assert {r.seed for r in rows} == {3}


def test_without_distractors_what_cannot_be_reached_is_said(invoke, files):
    result, rows = invoke("scale", "--data", files / "toy", "--sizes", "1000,1M", "--systems", "bm25")
    assert result.exit_code == 0
    assert {r.settings["memory_tokens"] for r in rows if r.metric == "R@5"} == {1000}
    assert any("1,048,576 tokens were not reached" in r.settings["reason"] for r in rows if r.metric == NOTE)
    assert "1,048,576 tokens were not reached" in result.output


def test_latency(invoke, files):
    options = grown(files, "--questions", 2, "--repeats", 1, "--per-round", 1)
    result, rows = invoke("latency", *options, "--systems", "msa-interleave,bm25", "--json")
    assert result.exit_code == 0, result.output
    totals = {(r.system, r.metric) for r in rows if r.settings.get("stage") == "total"}
    assert totals == {(s, f"seconds_{p}") for s in ("msa-interleave", "bm25") for p in ("p50", "p95")}
    indexing = {r.system: r.value for r in rows if r.metric == "index_seconds_per_1k_tokens"}
    assert set(indexing) == {"msa-interleave", "bm25"}
    assert all(value > 0 for value in indexing.values())
    shown = json.loads(result.stdout)
    assert {r["part"] for r in shown} == {"latency", "cost"}


def test_needle(invoke, tmp_path):
    options = ["--systems", "bm25", "--lengths", "1200", "--depths", 2, "--tasks", "single-1", "--no-answers"]
    result, rows = invoke("needle", *options, "--cache", tmp_path / "shared")
    assert result.exit_code == 0, result.output
    assert [*(tmp_path / "shared" / "banks").glob("*/bank-*")] and not [*(tmp_path / "shared").rglob("encoded")]
    assert {r.settings["depth"] for r in rows if r.metric == "recall"} == {0.0, 1.0}


def test_folders_that_are_not_there(invoke, files, tmp_path):
    with pytest.raises(IngestError, match="not a folder"):
        invoke("scale", "--data", tmp_path / "nowhere", "--systems", "bm25")
    with pytest.raises(IngestError, match="distractors"):
        invoke("scale", "--data", files / "toy", "--distractors", tmp_path, "--systems", "bm25")
    assert not (tmp_path / "out").exists()
