"""Degradation: what is stored at each size, what is skipped, and how a run goes on."""

from __future__ import annotations

import pytest
from growth_toys import corpus, distractors
from toy_systems import create

from msa_plugin.bench.driver import Run
from msa_plugin.bench.growth import Banks
from msa_plugin.bench.growth_rows import losses
from msa_plugin.bench.latency import LatencyCommand
from msa_plugin.bench.scale import ScaleCommand
from msa_plugin.bench.store import NOTE, SKIPPED, Results
from msa_plugin.config import MemoryConfig
from msa_plugin.errors import BankError, ConfigError
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter

CONFIG = MemoryConfig(dtype="float32", instruction="Be brief.", context_tokens=256)
SIZES = (700, 1500, 2500)


@pytest.fixture
def measure(tmp_path, backbone):
    def run(create=create, sizes=SIZES, systems=("msa", "words"), out="out", more=(), budget=None, **settings):
        banks = Banks(tmp_path / "cache", backbone, tiny_adapter(backbone), CONFIG)
        with Results(tmp_path / out) as results:
            chosen = ScaleCommand(out=tmp_path, systems=systems, sizes=sizes, questions=8, **settings)
            run = Run("scale", results, banks, tmp_path / "cache", {"max_new_tokens": 2}, create)
            planned = chosen.over(run, corpus(), [*distractors(), *more], budget)
            return planned, results.rows()

    return run


def values(rows, metric, system="msa"):
    return {r.settings["memory_tokens"]: r.value for r in rows if (r.metric, r.system) == (metric, system)}


def test_quality_and_time_of_every_system_at_every_size(measure):
    planned, rows = measure()
    for system in ("msa", "words"):
        for metric in ("R@5", "R@10", "nDCG@10", "seconds_p50", "seconds_p95"):
            assert set(values(rows, metric, system)) == set(SIZES)
    assert set(values(rows, "route_seconds_p50")) == set(values(rows, "search_seconds_p95", "words")) == set(SIZES)
    at = {s.size: s for s in planned.steps}
    for row in rows:
        if "memory_tokens" in row.settings:
            step = at[row.settings["memory_tokens"]]
            assert (row.documents, row.tokens, row.n) == (step.documents, step.tokens, 8)
            assert row.low is not None
            assert row.high is not None
            assert row.low <= row.high
    assert values(rows, "seconds_p95")[700] >= values(rows, "seconds_p50")[700]


def test_quality_equals_that_of_a_memory_built_from_scratch(measure, backbone, tmp_path):
    planned, rows = measure(systems=("msa",))
    for step in planned.steps:
        scratch = tmp_path / f"scratch-{step.size}"
        with LatentMemory.open(scratch, model=backbone, adapter=tiny_adapter(backbone), config=CONFIG) as memory:
            memory.add(planned.dataset(step).documents)
            found = memory.retrieve([q.text for q in planned.questions], k=5)
        hits = [set(q.positives) <= {h.id for h in row} for q, row in zip(planned.questions, found, strict=True)]
        assert values(rows, "R@5")[step.size] == pytest.approx(sum(hits) / len(hits))


def test_relative_loss_is_paired(measure):
    _, rows = measure()
    [row] = [r for r in rows if r.metric == "relative_loss" and r.system == "msa" and r.settings["of"] == "nDCG@10"]
    found = values(rows, "nDCG@10")
    assert row.value == pytest.approx(1 - found[2500] / found[700])
    assert row.settings == {"of": "nDCG@10", "from": 700, "to": 2500}
    assert row.low <= row.value <= row.high


def test_loss_by_hand():
    first = {"a": {"R@5": 1.0}, "b": {"R@5": 0.5}, "c": {"R@5": 1.0}}
    last = {"a": {"R@5": 0.5}, "b": {"R@5": 0.25}, "d": {"R@5": 1.0}}
    [row] = losses(first, last)
    assert (row.value, row.n) == (pytest.approx(0.5), 2)
    assert (row.low, row.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert not list(losses({"a": {"R@5": 0.0}}, {"a": {"R@5": 0.0}}))


def test_some_questions_are_answered(measure):
    _, rows = measure(sizes=SIZES[:1], answers=3, passages=2)
    for system, passages in (("msa", "adaptive"), ("words", 2)):
        for metric in ("EM", "F1"):
            [row] = [r for r in rows if (r.metric, r.system) == (metric, system)]
            assert row.n == 3
            assert row.settings == {"memory_tokens": 700, "passages": passages}
        assert values(rows, "answer_seconds_p50", system)[700] > 0


def test_an_interrupted_run_goes_on_where_it_stopped(measure, tmp_path):
    calls = []

    def stops(name, workspace, *_):
        calls.append((name, len(workspace.dataset.documents)))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return create(name, workspace)

    with pytest.raises(KeyboardInterrupt):
        measure(create=stops)
    before = Results(tmp_path / "out").rows()
    assert {r.settings["memory_tokens"] for r in before if r.metric == "R@5"} == {700, 1500}
    first = list(calls)
    calls.clear()
    _, rows = measure(create=lambda name, w, *_: calls.append((name, len(w.dataset.documents))) or create(name, w))
    assert len(first) == 4
    assert len(calls) == 3  # the size that was under way for one system, and the last for both
    assert calls[0] == first[3]
    assert set(values(rows, "R@5", "words")) == set(SIZES)
    calls.clear()
    _, again = measure(create=lambda name, w: calls.append(name))
    assert calls == []
    assert [r.to_dict() for r in again] == [r.to_dict() for r in rows]


def test_a_system_that_cannot_run_is_skipped_with_its_reason(measure):
    _, rows = measure(systems=("absent", "words"))
    [skip] = [r for r in rows if r.metric == SKIPPED]
    assert skip.system == "absent"
    assert "msa-plugin[bench]" in skip.settings["reason"]
    assert set(values(rows, "R@5", "words")) == set(SIZES)


def test_a_failure_at_one_size_keeps_the_others(measure):
    def fails(name, workspace):
        if len(workspace.dataset.documents) > 20:
            raise BankError("the disk is full")
        return create(name, workspace)

    _, rows = measure(create=fails, systems=("words",))
    assert set(values(rows, "R@5", "words")) == {700}
    assert not [r for r in rows if r.metric == SKIPPED]
    assert any("the disk is full" in r.settings["reason"] for r in rows if r.metric == NOTE)


def test_a_prefilter_is_a_variant_with_its_recall(measure):
    pytest.importorskip("faiss", reason="needs the faiss extra")
    _, rows = measure(systems=("msa", "words"), prefilter="faiss:Flat@candidates=10")
    name = "msa+faiss:Flat@candidates=10"
    assert values(rows, "prefilter_recall@10", name) == dict.fromkeys(SIZES, 1.0)
    assert values(rows, "nDCG@10", name) == values(rows, "nDCG@10")
    _, rows = measure(systems=("msa+faiss:IVF8,Flat@nprobe=1,candidates=10",), out="coarse")
    recall = values(rows, "prefilter_recall@10", "msa+faiss:IVF8,Flat@candidates=10,nprobe=1")
    assert 0 < recall[2500] < 1


def test_an_index_that_a_size_is_too_small_for_is_noted(measure):
    pytest.importorskip("faiss", reason="needs the faiss extra")
    _, rows = measure(systems=("msa",), prefilter="faiss:IVF300,Flat")
    assert any("IVF300" in str(r.settings.get("reason")) for r in rows if r.metric in (NOTE, SKIPPED))
    assert set(values(rows, "R@5")) == set(SIZES)


def test_synthetic_sizes_are_said_to_be_synthetic(measure):
    planned, rows = measure(sizes=(700, 20_000), systems=("msa", "words"), synthetic=True)
    [row] = [r for r in rows if r.metric == "R@5" and r.settings["memory_tokens"] == 20_000]
    assert (row.system, row.settings["synthetic"]) == ("msa", True)
    assert row.documents == planned.steps[-1].documents + planned.steps[-1].synthetic
    assert row.tokens == pytest.approx(20_000, rel=0.2)
    assert any("words needs texts" in r.settings["reason"] for r in rows if r.metric == NOTE)
    assert all("synthetic" not in r.settings for r in rows if r.settings.get("memory_tokens") == 700)


def test_a_budget_cuts_questions_evenly_and_says_so(measure):
    _, rows = measure(sizes=SIZES[:1], systems=("words",), budget=1e-9)
    [row] = [r for r in rows if r.metric == "R@5"]
    assert row.n == 5
    assert any("5 of 8 questions" in r.settings["reason"] for r in rows if r.metric == NOTE)


def test_bad_settings():
    for wrong in ({"systems": ()}, {"answers": -1}, {"passages": 0}, {"prefilter": "annoy"}, {"questions": 0}):
        with pytest.raises(ConfigError):
            ScaleCommand(out="o", **wrong)
    for wrong in ({"hops": 0}, {"per_round": 0}, {"repeats": 0}):
        with pytest.raises(ConfigError):
            LatencyCommand(out="o", **wrong)
