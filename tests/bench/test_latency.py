"""Times by hop and stage, bytes and peaks; who takes part, and how a run goes on."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import pytest
from growth_toys import corpus, distractors
from toy_systems import create

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.driver import Run
from msa_plugin.bench.growth import Banks
from msa_plugin.bench.indexing import TextSource
from msa_plugin.bench.latency import Latency, LatencySettings
from msa_plugin.bench.store import NOTE, SKIPPED, Results
from msa_plugin.bench.timed_system import AtSize, TimedSystem
from msa_plugin.config import MemoryConfig
from tiny import save_tiny, tiny_adapter, tiny_backbone

CONFIG = MemoryConfig(dtype="float32", instruction="Be brief.", context_tokens=512)
SIZES = (700, 1500)
SYSTEMS = ("msa-interleave", "iterative:words", "words")


@pytest.fixture
def measure(tmp_path, backbone):
    def run(create=create, systems=SYSTEMS, sizes=SIZES, source=None, parts=None, budget=None, **settings):
        banks = Banks(tmp_path / "cache", *(parts or (backbone, tiny_adapter(backbone))), CONFIG)
        settings = {"questions": 4, "repeats": 2, "encode_tokens": 300, **settings}
        with Results(tmp_path / "out") as results:
            chosen = LatencySettings(systems=systems, sizes=sizes, **settings)
            run = Run("latency", results, banks, tmp_path / "cache", {"max_new_tokens": 2}, create)
            planned = Latency(chosen, run, budget, source).over(corpus(), distractors())
            return planned, results.rows()

    return run


def times(rows, system, metric="seconds_p50", size=700):
    found = [r for r in rows if (r.part, r.system, r.metric) == ("latency", system, metric)]
    here = [r for r in found if r.settings["memory_tokens"] == size]
    return {AtSize(r.settings.get("hop", 0), r.settings["stage"]): r.value for r in here}


def test_stages_of_every_hop_and_of_the_whole_question(measure):
    planned, rows = measure(hops=2)
    for size in SIZES:
        mine = times(rows, "msa-interleave", size=size)
        assert {AtSize(h, s) for h in (1, 2) for s in ("encode", "route")} <= set(mine)
        theirs = times(rows, "iterative:words", size=size)
        assert {at for at in theirs if at.hop} == {AtSize(1, "route"), AtSize(2, "route")}
        single = times(rows, "words", size=size)
        assert {at for at in single if at.hop} == {AtSize(1, "route")}
        for found in (mine, theirs, single):
            assert {AtSize(0, s) for s in ("prefill", "decode", "total")} <= set(found)
            assert found[AtSize(0, "total")] >= found[AtSize(0, "prefill")]
    row = next(r for r in rows if r.part == "latency" and r.settings.get("stage") == "total")
    assert (row.n, row.documents, row.tokens) == (8, planned.steps[0].documents, planned.steps[0].tokens)
    p50, p95 = (times(rows, "words", m)[AtSize(0, "total")] for m in ("seconds_p50", "seconds_p95"))
    assert p50 <= p95


def test_interleave_takes_as_many_rounds_as_hops(measure):
    _, rows = measure(systems=("msa-interleave", "msa"), sizes=SIZES[:1], hops=3, per_round=1)
    assert {at.hop for at in times(rows, "msa-interleave") if at.hop} == {1, 2, 3}
    assert {at.hop for at in times(rows, "msa") if at.hop} == {1}


def test_what_an_index_keeps_and_what_indexing_takes(measure):
    planned, rows = measure(sizes=SIZES[:1])
    cost = {(r.system, r.metric): r for r in rows if r.part == "cost"}
    [step] = planned.steps
    assert cost["words", "disk_bytes_per_token"].value == pytest.approx(1000 / step.tokens)
    assert cost["words", "memory_bytes_per_token"].value == pytest.approx(2000 / step.tokens)
    row = cost["words", "index_seconds_per_1k_tokens"]
    assert (row.settings, row.n) == ({"sample_tokens": 300}, 2)
    assert row.value == pytest.approx(1000 * 0.1 / row.tokens)
    assert cost["msa", "index_seconds_per_1k_tokens"].value > 0
    assert row.tokens >= 300
    assert ("iterative:words", "index_seconds_per_1k_tokens") not in cost  # it searches the index of words


def test_systems_take_turns(measure):
    asked = []
    ask = TimedSystem.ask

    def watched(self, question):
        asked.append((self.name, question))
        return ask(self, question)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TimedSystem, "ask", watched)
        planned, _ = measure(sizes=SIZES[:1], repeats=1)
    turns = asked[len(SYSTEMS) :]  # the first question of each does not count
    assert len(turns) == len(SYSTEMS) * len(planned.questions)
    for start in range(0, len(turns), len(SYSTEMS)):
        names, questions = zip(*turns[start : start + len(SYSTEMS)], strict=True)
        assert set(names) == set(SYSTEMS)
        assert len(set(questions)) == 1
    assert {turns[i][0] for i in range(0, len(turns), len(SYSTEMS))} == set(SYSTEMS)  # each begins at times


def test_a_run_goes_on_where_it_stopped(measure):
    _, rows = measure(sizes=SIZES[:1])
    made = []

    def counted(name, workspace, options=None):
        made.append((name, len(workspace.dataset.documents)))
        return create(name, workspace, options)

    planned, more = measure(create=counted)
    larger = planned.steps[1].documents
    assert {count for _, count in made} == {larger}
    assert times(more, "words") == times(rows, "words")
    made.clear()
    measure(create=counted)
    assert made == []


def test_a_system_that_cannot_run_is_skipped_and_tried_again(measure):
    _, rows = measure(systems=("words", "absent"), sizes=SIZES[:1])
    [skip] = [r for r in rows if r.metric == SKIPPED]
    assert (skip.system, skip.part) == ("absent", "latency")
    assert "msa-plugin[bench]" in skip.settings["reason"]
    assert any("indexing with absent" in r.settings["reason"] for r in rows if r.metric == NOTE)
    before = times(rows, "words")
    _, again = measure(systems=("words", "absent"), sizes=SIZES[:1])
    assert times(again, "words") == before  # nothing new can be measured, so nothing is

    def now_there(name, workspace, options=None):
        return create("words" if name == "absent" else name, workspace, options)

    _, after = measure(create=now_there, systems=("words", "absent"), sizes=SIZES[:1])
    assert AtSize(0, "total") in times(after, "absent")
    assert times(after, "words") != before  # all are measured anew, side by side
    assert not [r for r in after if r.metric == SKIPPED]


def test_a_system_that_does_not_search_is_skipped(measure):
    class Knows:
        name = "knows"

        def answer(self, questions):
            return []

    def answering(name, workspace, options=None):
        return Knows() if name == "knows" else create(name, workspace, options)

    _, rows = measure(create=answering, systems=("words", "knows"), sizes=SIZES[:1])
    assert AtSize(0, "total") in times(rows, "words")
    [skip] = [r for r in rows if r.metric == SKIPPED]
    assert (skip.system, "does not search" in skip.settings["reason"]) == ("knows", True)


def test_routing_and_searching_of_one_hop_add_up(measure):
    def fused(name, workspace, options=None):
        system = create("words", workspace)
        find = system.find
        system.find = lambda questions, k: [
            replace(found, rounds=({"route": 2.0, "search": 3.0},)) for found in find(questions, k)
        ]
        return system

    _, rows = measure(create=fused, systems=("words",), sizes=SIZES[:1])
    assert times(rows, "words")[AtSize(1, "route")] == 5


def test_a_system_that_fails_midway_leaves_the_others(measure):
    class Failing:
        calls = 0

    def failing(name, workspace, options=None):
        system = create("words", workspace)
        if name == "broken":
            find = system.find

            def sometimes(questions, k):
                Failing.calls += 1
                if Failing.calls > 3:
                    raise OSError("the line is dead")
                return find(questions, k)

            system.find = sometimes
        return system

    _, rows = measure(create=failing, systems=("words", "broken"), sizes=SIZES[:1])
    assert AtSize(0, "total") in times(rows, "words")
    assert times(rows, "broken") == {}
    [skip] = [r for r in rows if r.metric == SKIPPED]
    assert "OSError: the line is dead" in skip.settings["reason"]


def test_msa_behind_an_index(measure):
    _, rows = measure(systems=("msa-interleave",), sizes=SIZES[:1], prefilter="coarse:all@candidates=8")
    found = times(rows, "msa-interleave+coarse:all@candidates=8")
    assert {AtSize(1, "route"), AtSize(2, "route"), AtSize(0, "total")} <= set(found)
    recalls = [r for r in rows if r.metric.startswith("prefilter_recall")]
    assert [(r.system, r.value) for r in recalls] == [("msa-interleave+coarse:all@candidates=8", 1.0)]


def test_a_budget_says_so(measure):
    _, rows = measure(systems=("words",), sizes=SIZES[:1], budget=1e-9)
    [row] = [r for r in rows if r.metric == "seconds_p50" and r.settings.get("stage") == "total"]
    assert row.n == 5
    assert any("5 of 8 turns" in r.settings["reason"] for r in rows if r.metric == NOTE)


@pytest.mark.slow
def test_peak_memory_is_measured_in_a_process_of_its_own(measure, tmp_path):
    save_tiny(tmp_path, tiny_backbone())
    backbone = Backbone.load(str(tmp_path / "model"), device="cpu", dtype="float32")
    loaded = Adapter.load(tmp_path / "adapter")
    source = TextSource(str(tmp_path / "model"), tmp_path / "adapter", CONFIG.model_copy(update={"device": "cpu"}))
    _, rows = measure(systems=("msa", "words"), sizes=SIZES[:1], source=source, parts=(backbone, loaded))
    peaks = {r.system: r.value for r in rows if r.metric == "peak_rss_bytes"}
    assert set(peaks) == {"msa", "words"}
    assert all(100e6 < peak < 8e9 for peak in peaks.values())


def test_a_peak_that_cannot_be_measured_costs_nothing_else(measure, monkeypatch):
    def ended(*_, **__):
        raise BrokenProcessPool("the system ended it")

    monkeypatch.setattr("msa_plugin.bench.latency.peak_of", ended)
    _, rows = measure(systems=("words",), sizes=SIZES[:1], source=TextSource(None, None, CONFIG))
    assert times(rows, "words")
    [note] = [r.settings["reason"] for r in rows if r.metric == NOTE and "peak memory" in r.settings["reason"]]
    assert note.startswith("peak memory of words at 700 tokens was not measured: BrokenProcessPool: the system")
