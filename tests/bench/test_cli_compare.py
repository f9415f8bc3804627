"""`msa bench retrieval|qa|report` from the shell's side, and the quick profile on both backbones."""

from __future__ import annotations

import json
import sys

import pytest
from fakes import Fakes, Few, toy
from test_judge import Endpoint
from typer.testing import CliRunner

from msa_plugin.bench.compare import QUICK, QaCommand, RankingCommand
from msa_plugin.bench.report_rows import DEFAULT
from msa_plugin.bench.runner import compare
from msa_plugin.bench.store import NOTE, SKIPPED, Results
from msa_plugin.cli.bench import app
from msa_plugin.config import GenerationConfig
from msa_plugin.errors import ConfigError, IngestError
from msa_plugin.retrieval.prefilter import PrefilterSpec
from tiny import save_tiny, tiny_adapter


@pytest.fixture(scope="module")
def saved(tmp_path_factory, backbone):
    """The tiny model and its adapter as folders."""
    folder = tmp_path_factory.mktemp("saved")
    save_tiny(folder, backbone)
    return folder


@pytest.fixture
def fakes(monkeypatch):
    """Systems of the tests in place of the registry."""
    made = Fakes()

    def parse(text):
        names = tuple(name.strip() for name in text.split(","))
        if unknown := [n for n in names if n not in ("msa", "words", "wrong", "knows")]:
            raise ConfigError(f"unknown systems {unknown}")
        return names

    monkeypatch.setattr("msa_plugin.bench.systems.create", made)
    monkeypatch.setattr("msa_plugin.bench.compare.parse", parse)
    return made


@pytest.fixture
def bench(tmp_path, saved, monkeypatch):
    """Run a command; returns its exit code and stdout, or raises our errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MSA_MODEL", str(saved / "model"))
    monkeypatch.setenv("MSA_ADAPTER", str(saved / "adapter"))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["msa", "bench", *map(str, words)])
        done = CliRunner().invoke(app, [*map(str, words)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout

    return run


def test_retrieval_and_its_report(bench, fakes, tmp_path):
    toy(tmp_path / "toy")
    code, said = bench("retrieval", "--data", "toy", "--systems", "words, wrong", "--out", "out", "-k", "10")
    assert code == 0
    lines = said.splitlines()
    assert lines[0] == "Retrieval, nDCG@10" and lines[1].split() == ["data", "set", "n", "words", "wrong"]
    assert lines[2].split()[:2] == ["toy", "8"]
    assert "report:" in lines[-1]
    assert (tmp_path / "out" / "report.md").is_file()
    assert {r.command for r in Results(tmp_path / "out").rows()} == {
        "msa bench retrieval --data toy --systems 'words, wrong' --out out -k 10"
    }
    text = "".join(p.read_text() for p in (tmp_path / "out").glob("*.json*"))
    assert str(tmp_path) not in text
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    code, said = bench("report", "out", "--recompute", "--json")
    assert json.loads(said)["recomputed"] == sum(b'"part": "retrieval"' in line for line in before.splitlines())


def test_distractors_beside_a_corpus(bench, fakes, tmp_path):
    toy(tmp_path / "toy")
    (tmp_path / "pages").mkdir()
    lines = [json.dumps({"id": f"x{n}", "text": f"page {n} of {n * 7919} pages about nothing"}) for n in range(200)]
    (tmp_path / "pages" / "pages.jsonl").write_text("\n".join(lines))
    words = ["retrieval", "--data", "toy", "--systems", "words", "--distractors", "pages", "--added", "1K"]
    code, said = bench(*words, "--dtype", "float32", "--out", "out")
    assert code == 0 and said.splitlines()[2].split()[0] == "toy+1K"
    report = (tmp_path / "out" / "report.md").read_text()
    assert "toy+1K" in report and "--distractors pages --added 1K" in report


def test_answers_graded_by_a_judge(bench, fakes, tmp_path):
    toy(tmp_path / "toy")
    with Endpoint('{"score": 5}') as server:
        words = ["qa", "--data", "toy", "--systems", "msa,knows", "--passages", "1", "--out", "out"]
        code, said = bench(*words, "--questions", 2, "--max-new-tokens", 2, "--judge", server.url, "--json")
    rows = json.loads(said)
    assert code == 0
    judged = [(r["system"], r["settings"]["passages"], r["value"]) for r in rows if r["metric"] == "judge"]
    assert judged == [("knows", "adaptive", 5.0), ("msa", 1, 5.0), ("msa", "adaptive", 5.0)]
    assert [r["settings"]["reason"][:6] for r in rows if r["metric"] == NOTE] == ["2 of 8"]
    assert server.url not in (tmp_path / "out" / "results.jsonl").read_text()


def test_several_ways_of_reading_and_sets(bench, fakes, tmp_path):
    for name in ("one", "two", "three"):
        toy(tmp_path / "sets" / name)
    words = ["qa", "--data", "sets", "--sets", "two,one", "--corpus", "0", "--questions", 2, "--systems", "words,knows"]
    told = [*words, "--reading", "text,kv", "--passages", "1", "--max-new-tokens", 2, "--out", "out"]
    code, said = bench(*told)
    assert code == 0
    assert said.splitlines()[0] == "reading text" and said.splitlines().count("reading kv") == 1
    assert said.count("Answers, F1") == 2 and said.count("average (2)") == 12  # three metrics, two numbers read
    assert "2 of 8 questions over 2 of 8 passages" in said or "2 of 8 questions over 3 of 8 passages" in said
    rows = json.loads(bench(*told, "--json")[1])
    assert {r["reading"] for r in rows} == {"text", "kv"}
    assert {r["dataset"] for r in rows if r["part"] == "qa"} == {"one-gold", "two-gold"}
    told = [*words, "--reader", "stock,auto", "--passages", "1", "--max-new-tokens", 2, "--out", "readers"]
    assert "reading auto, reader stock\n" in bench(*told)[1]
    assert sorted(p.name for p in (tmp_path / "readers").iterdir()) == ["auto-auto", "auto-stock", "cache"]
    assert (tmp_path / "out/text/report.md").is_file() and (tmp_path / "out/kv/report.md").is_file()


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("qa", "--data", "toy", "--sets", "toy,other"), ConfigError, "no data set 'other' here; there are toy"),
        (("qa", "--data", "toy", "--reading", "text,loud"), ConfigError, "reading"),
        (("qa", "--data", "toy", "--reader", "nobody"), ConfigError, "reader"),
        (("qa",), ConfigError, "--data DIR, or --quick"),
        (("qa", "--quick", "--data", "toy"), ConfigError, "not both"),
        (("qa", "--data", "toy", "--passages", "1,0"), ConfigError, "passages"),
        (("qa", "--data", "toy", "--judge", "ftp://x"), ConfigError, "http"),
        (("retrieval", "--data", "none"), IngestError, "not a folder"),
        (("retrieval", "--data", "toy", "--systems", "words,nonsense"), ConfigError, "nonsense"),
        (("retrieval", "--data", "toy", "--budget", "0"), ConfigError, "--budget"),
        (("retrieval", "--data", "toy", "--systems", "words", "--prefilter", "faiss:HNSW32"), ConfigError, "for msa"),
        (("retrieval", "--data", "toy", "--systems", "msa", "--prefilter", "HNSW32"), ConfigError, "faiss:"),
        (("retrieval", "--data", "toy", "--distractors", "toy", "--added", "1K,2K"), ConfigError, "once for each"),
        (("qa", "--data", "toy", "--added", "1K"), ConfigError, "distractors and added belong"),
        (("retrieval", "--data", "toy", "--systems", "words", "--dtype", "int3"), ConfigError, "bfloat16"),
        (("report", "none"), ConfigError, "holds no results"),
    ],
)
def test_wrong_use(bench, fakes, tmp_path, words, error, message):
    toy(tmp_path / "toy")
    with pytest.raises(error, match=message):
        bench(*words)


def test_a_mistyped_path_is_told_before_a_backbone_is_loaded(bench, fakes, tmp_path, monkeypatch):
    monkeypatch.setattr("msa_plugin.bench.driver.Backbone.load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(IngestError, match="not a folder"):
        bench("retrieval", "--data", "none", "--systems", "words", "--out", "out")
    assert not (tmp_path / "out").exists()


def test_what_was_skipped_is_said(bench, fakes, tmp_path):
    toy(tmp_path / "toy")
    _, said = bench("retrieval", "--data", "toy", "--systems", "words,knows", "--out", "out")
    assert "What did not run, and why" in said and "knows   it does not rank passages" in said


def test_msa_behind_an_index_too(bench, fakes, tmp_path):
    toy(tmp_path / "toy")
    name = f"msa+{PrefilterSpec.parse('faiss:HNSW32')}"
    fakes.kinds[name] = Few
    words = ["retrieval", "--data", "toy", "--systems", "words,msa", "--prefilter", "faiss:HNSW32", "--out", "out"]
    _, said = bench(*words, "--json")
    rows = json.loads(said)
    assert {r["system"] for r in rows if r["metric"] == "AP"} == {"words", "msa", name}
    assert [r["value"] for r in rows if r["metric"] == "exact_recall@10"] == [3 / 8]


@pytest.mark.parametrize("part", ["retrieval", "qa"])
def test_the_quick_profile_on_the_tiny_backbone(tmp_path, backbone, part):
    command = {"retrieval": RankingCommand, "qa": QaCommand}[part](quick=True, out=tmp_path / "out", questions=3)
    given = command.config(part, {"instruction": "Be brief."}, generation=GenerationConfig(max_new_tokens=2))
    rows = compare(given, backbone=backbone, adapter=tiny_adapter(backbone))
    assert {r.system for r in rows if r.part == part} - {""} == set(QUICK[part])
    assert [r.settings["reason"] for r in rows if r.metric == SKIPPED] == []


@pytest.mark.slow
def test_the_quick_profile_on_the_default_backbone(tmp_path, real_backbone):
    ranking = RankingCommand(quick=True, out=tmp_path / "out", systems="msa,bm25").config("retrieval", {}, k=20)
    recall = {r.system: r.value for r in compare(ranking, backbone=real_backbone) if r.metric == "R@5"}
    assert set(recall) == {"msa", "bm25"}
    assert min(recall.values()) > 0.8
    answering = QaCommand(quick=True, out=tmp_path / "out", questions=2, passages="1", max_new_tokens=8)
    [(_, config)] = answering.configs()
    rows = compare(config, backbone=real_backbone)
    contains = {(r.system, r.settings["passages"]): r.value for r in rows if r.metric == "contains"}
    found = {(DEFAULT, 1), ("msa", 1), ("bm25", 1)}
    chosen = {(DEFAULT, "adaptive"), ("msa", "adaptive"), ("closed-book", "adaptive")}
    assert set(contains) == found | chosen
    assert max(contains[name] for name in found) > contains["closed-book", "adaptive"]
