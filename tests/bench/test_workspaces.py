"""Workspaces: the corpus is encoded when somebody needs the memory, once for all that share a cache."""

from __future__ import annotations

import json

import pytest
from fakes import Fakes, config, run, toy
from system_toys import toy_dataset

from msa_plugin.bench.driver import Run
from msa_plugin.bench.growth import BANKS, Banks
from msa_plugin.bench.store import Results
from msa_plugin.bench.systems import create
from msa_plugin.bench.watch import Watch
from msa_plugin.config import MemoryConfig
from tiny import tiny_adapter

SETTINGS = MemoryConfig(instruction="Be brief.")
QUESTIONS = ["What is a glacier?"]


@pytest.fixture
def banks(tmp_path, backbone):
    return Banks(tmp_path / "cache" / BANKS, backbone, tiny_adapter(backbone), SETTINGS)


class Told(Watch):
    """What a run says of its steps, and the memories that were warmed."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def step(self, what, done, total):
        self.log.append(what)


def opened(banks, log):
    cache = banks.folder.parent.parent
    run = Run("retrieval", Results(cache / "out"), banks, cache, {}, watch=Told(log))
    run._warm = log.append
    return run.workspace(toy_dataset())


@pytest.mark.parametrize("name", ["bm25", "dense-same-backbone", "fusion:bm25~dense-same-backbone", "decompose:bm25"])
def test_nothing_is_encoded_for_systems_that_do_not_need_it(banks, name):
    log = []
    with opened(banks, log) as given:
        system = create(f"{name}+rerank", given)
        cost = system.prepare()
        assert system.find(QUESTIONS, 3)[0].ranking
        assert given.opened.stats().documents == 0
        assert not [entry for entry in log if "encoding" in str(entry)]
        tokens = given.tokens
        assert given.memory.stats().tokens == tokens == cost.tokens


def test_the_memory_is_filled_once_and_its_time_kept(banks):
    log = []
    with opened(banks, log) as given:
        memory = given.memory
        assert memory.stats().documents == len(given.dataset.documents)
        assert [entry for entry in log if entry is memory] == [memory]  # ready, once
        _ = given.memory
        assert log.count(memory) == 1
        seconds = given.encoding_seconds
        assert seconds > 0
        direct = [hit.id for hit in memory.retrieve(QUESTIONS[0], 5)]
    log = []
    with opened(banks, log) as given:
        assert [hit.id for hit in given.memory.retrieve(QUESTIONS[0], 5)] == direct
        assert given.encoding_seconds == pytest.approx(seconds)
    account = json.loads((banks.folder / "encoding.json").read_text())
    assert account["tokens"] == given.tokens
    assert account["seconds"] == pytest.approx(seconds)


def test_sizes_of_a_growing_memory_share_what_was_encoded(banks):
    dataset = toy_dataset()
    with opened(banks, []) as given:
        _ = given.memory
    before = (banks.folder / "encoding.json").read_text()
    steps = []
    banks.encode(dataset.documents[:3], lambda *step: steps.append(step))
    assert json.loads((banks.folder / "encoding.json").read_text())["tokens"] == json.loads(before)["tokens"]
    with banks.open(dataset.documents[:3]) as memory:
        assert memory.stats().documents == 3


def test_another_adapter_finds_the_embeddings_and_answers_need_the_memory(tmp_path, backbone):
    data, cache = toy(tmp_path / "toy"), tmp_path / "cache"
    systems = ("dense-same-backbone",)
    fakes = Fakes()
    fakes.kinds["dense-same-backbone"] = lambda name, workspace, *_: create(name, workspace)
    run(backbone, fakes, config(tmp_path / "one", data, systems=systems, cache=cache))
    blocks = {p: p.stat().st_mtime_ns for p in (cache / "embeddings").rglob("*.npz")}
    assert blocks
    assert not list((cache / BANKS).glob("*/encoded"))
    run(backbone, fakes, config(tmp_path / "two", data, "qa", systems=systems, cache=cache))
    assert len(list((cache / BANKS).glob("*/encoded"))) == 1
    assert {p: p.stat().st_mtime_ns for p in (cache / "embeddings").rglob("*.npz")} == blocks
