"""Times by hop and stage, and bytes; who takes part, and how a run goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from growth_toys import corpus, distractors
from toy_systems import create

from msa_plugin.bench.driver import Run
from msa_plugin.bench.growth import Banks
from msa_plugin.bench.latency import AtSize, LatencyCommand, TimedSystem
from msa_plugin.bench.store import NOTE, SKIPPED, Results
from msa_plugin.config import MemoryConfig
from tiny import tiny_adapter

CONFIG = MemoryConfig(dtype="float32", instruction="Be brief.", context_tokens=512)
SIZES = (700, 1500)
SYSTEMS = ("msa-interleave", "iterative:words", "words")


@pytest.fixture
def measure(tmp_path, backbone):
    def run(create=create, systems=SYSTEMS, sizes=SIZES, budget=None, **settings):
        banks = Banks(tmp_path / "cache", backbone, tiny_adapter(backbone), CONFIG)
        settings = {"questions": 4, "repeats": 2, **settings}
        with Results(tmp_path / "out") as results:
            chosen = LatencyCommand(out=tmp_path, systems=systems, sizes=sizes, **settings)
            run = Run("latency", results, banks, tmp_path / "cache", {"max_new_tokens": 2}, create)
            planned = chosen.over(run, corpus(), distractors(), budget)
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
    _, rows = measure(sizes=SIZES[:1])
    cost = {(r.system, r.metric): r for r in rows if r.part == "cost"}
    for metric, whole in (("disk_bytes", 1000), ("memory_bytes", 2000), ("index_seconds", 0.1)):
        name = f"{metric}_per_token" if "bytes" in metric else f"{metric}_per_1k_tokens"
        tokens = 100 * cost["words", name].documents / (1000 if metric == "index_seconds" else 1)
        assert cost["words", name].value == pytest.approx(whole / tokens)
        assert cost["msa-interleave", name].value > 0 and cost["words", name].settings == {"memory_tokens": 700}


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
