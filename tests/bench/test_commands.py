"""Command lines as README, docs and Makefile give them make the settings that they say."""

from __future__ import annotations

import shlex
from importlib import import_module

import pytest
from typer.testing import CliRunner

from msa_plugin.cli.bench import COMMANDS, app
from msa_plugin.errors import ConfigError

GIVEN = """
latency --data DATA/dev/nq --distractors others --sizes 16K,256K --questions 3 --repeats 2 --hops 2 --out needles
mteb --tasks SciFact --bank bench-bank
needle --systems "msa,msa-interleave,msa+lexical:1,bm25,dense" --lengths 4K,16K --depths 3 --distractors d --out needles
paired pools --sets cranfield-of-80,squad-of-80-hard
qa --data DATA/dev --sets squad,nq --systems gold --corpus 0 --questions 40 --reading kv,text --out F
qa --data nq --systems "bm25,msa" --budget 15 --out results --cache results/cache --passages 1,5 --judge http://x/v1
report docs/results/retrieval --recompute
retrieval --data DATA/dev --systems "fusion:msa~bm25,(dense+rerank)" -k 20 --dtype bfloat16 --batch 32 --others hard
retrieval --data DATA/dev --distractors DATA/distractors --added 1M --systems msa,bm25 --prefilter faiss:HNSW32
retrieval --quick --out results --dialogues turns
scale --data DATA/dev/nq --distractors DATA/distractors --sizes 16K,64K,256K,1M,4M,10M --questions 100 --out growth
"""
LINES = GIVEN.strip().splitlines()


def model(name):
    module, _, settings = COMMANDS[name][0].partition(":")
    return getattr(import_module(f"msa_plugin.{module}"), settings)


def called(monkeypatch, words):
    """The settings that a command line makes, nothing run."""
    made = []
    monkeypatch.setattr(model(words[0]), "run", lambda self, out: made.append(self))
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return made[0]


@pytest.mark.parametrize("line", LINES)
def test_written_command_lines_are_read(monkeypatch, line):
    assert isinstance(called(monkeypatch, shlex.split(line)), model(line.split()[0]))


def test_every_command_is_tried_and_tells_what_it_takes():
    assert {line.split()[0] for line in LINES} == set(COMMANDS)
    listed = CliRunner().invoke(app, ["--help"]).output
    assert all(f"  {name} " in listed for name in COMMANDS)
    told = CliRunner().invoke(app, ["latency", "--help"]).output
    for said in ("Example: msa bench latency", "iterative:dense", "16K,64K,256K,1M", "[default: 20]"):
        assert said in told, said


def test_values_arrive(monkeypatch):
    grown = called(monkeypatch, ["scale", "--out", "o", "--sizes", "4K,1e3", "--budget", "2", "--synthetic"])
    assert (grown.sizes, grown.minutes, grown.synthetic, grown.questions) == ((1000, 4096), 2.0, True, 100)
    assert grown.systems == ("msa", "msa-interleave", "bm25", "dense", "hybrid")
    needles = called(monkeypatch, ["needle", "-o", "o", "--depths", "3", "--tasks", "single-1", "--no-answers"])
    assert (needles.depths, needles.tasks, needles.answers) == ((0.0, 0.5, 1.0), ("single-1",), False)
    ranked = called(monkeypatch, ["retrieval", "--quick", "--added", "1M", "--distractors", "d", "-s", "msa, bm25"])
    assert (ranked.added, ranked.seed, ranked.systems) == (1 << 20, 0, "msa, bm25")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("needle --out o --samples 0", "--samples: Input should be greater"),
        ("latency --data d --out o --per-round 0", "--per-round: Input should be greater"),
        ("retrieval --data d --out o -s bm25 -k 0", "-k: Input should be greater"),
    ],
)
def test_a_wrong_value_is_told_by_its_option(line, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        CliRunner().invoke(app, line.split(), catch_exceptions=False)
