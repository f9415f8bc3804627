"""Needles are where they are said to be and nowhere else, and systems are measured by whether they find them."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from msa_plugin.bench.base import Cost, Found, Reply, Workspace
from msa_plugin.bench.driver import Run
from msa_plugin.bench.needle import NeedleConfig, measure, needles
from msa_plugin.bench.result import Scored
from msa_plugin.bench.store import SKIPPED, Results
from msa_plugin.bench.watch import Watch
from msa_plugin.data.needles import TASKS, answered, make_task
from msa_plugin.errors import ConfigError, MissingExtraError
from msa_plugin.types import Document

DEPTHS = (0.0, 0.3, 1.0)
FILLER = [
    Document(f"f{i}", f"The {i}th report is long. It says little. It ends here.", f"Report {i}") for i in range(900)
]


def count(text):
    return len(text.split())


class Oracle:
    """Finds what holds the capitalised or numbered words of a question; reads nothing."""

    def __init__(self, name, workspace):
        self.name, self.workspace, self.closed = name, workspace, False

    def prepare(self):
        return Cost(0.0, 1, 1, 1)

    def find(self, questions, k):
        return [Found(tuple(self._hits(q))[:k], {}) for q in questions]

    def _hits(self, question):
        [asked] = [q for q in self.workspace.dataset.questions if q.text == question]
        yield from (Scored(i, 1.0) for i in asked.positives)

    def answer(self, questions):
        told = {q.text: " and ".join(q.answers[:-1] or q.answers) for q in self.workspace.dataset.questions}
        return [Reply(told[q], (), {}, 1, 1) for q in questions]

    def close(self):
        self.closed = True


class Blind(Oracle):
    """Finds the first passages, whatever is asked."""

    def _hits(self, question):
        yield from (Scored(d.id, 1.0) for d in self.workspace.dataset.documents[:1])


def made(name, workspace):
    if name == "absent":
        raise MissingExtraError('pip install "msa-plugin[bench]"')
    return {"oracle": Oracle, "blind": Blind}[name](name, workspace)


class Bare(Run):
    """A run without memories, which counts words."""

    @contextmanager
    def workspace(self, dataset):
        yield Workspace(dataset, None, Path())


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("task", TASKS)
def test_values_are_in_their_needles_and_nowhere_else(task, depth):
    case = make_task(task, 3000, depth, 5, count, FILLER if task == "single-3" else ())
    [question], documents, shape = case.dataset.questions, case.dataset.documents, TASKS[task]
    expected, needles = question.answers, question.positives
    assert len(set(expected)) == len(expected) == shape.keys * shape.values
    holding = [d.id for d in documents for v in expected if v in d.text]
    assert sorted(holding) == sorted(needles)
    assert not any(v in question.text for v in expected)
    assert sum(count(f"{d.title} {d.text}") for d in documents) <= 3000
    assert case.tokens > 2500


@pytest.mark.parametrize("task", TASKS)
def test_needles_stand_at_their_depth(task):
    for depth in DEPTHS:
        case = make_task(task, 3000, depth, 1, count)
        order = [d.id for d in case.dataset.documents]
        places = [order.index(i) for i in case.dataset.questions[0].positives]
        assert places == list(range(places[0], places[0] + len(places)))
        before, after = places[0], len(order) - 1 - places[-1]
        assert before / (before + after) == pytest.approx(depth, abs=1 / len(order))


@pytest.mark.parametrize("task", TASKS)
def test_the_same_arguments_give_the_same_case_and_depth_moves_only_needles(task):
    case = make_task(task, 3000, 0.5, 3, count)
    assert case == make_task(task, 3000, 0.5, 3, count)
    other = make_task(task, 3000, 0.5, 4, count)
    assert case.dataset != other.dataset
    start = make_task(task, 3000, 0.0, 3, count)
    [asked], [same] = case.dataset.questions, start.dataset.questions
    assert (same.text, same.answers) == (asked.text, asked.answers)
    moved = {d.text for d in case.dataset.documents} - {d.text for d in start.dataset.documents}
    assert len(moved) <= 2 * len(asked.positives) + TASKS[task].decoys


def test_tasks_differ_in_what_surrounds_the_needle():
    about = {t: " ".join(d.text for d in make_task(t, 3000, 0.5, 0, count).dataset.documents) for t in TASKS}
    assert "The kettle is on the stove." in about["single-1"]
    assert about["multikey-2"].count("The locker code of") > 150
    assert about["multikey-1"].count("The locker code of") == 4
    assert about["multikey-3"].count("The serial of item") > 100
    with_stream = make_task("single-3", 3000, 0.5, 0, count, FILLER)
    assert {d.title.split()[0] for d in with_stream.dataset.documents} == {"Report"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("haystack", 1000, 0.5), "unknown needle task"),
        (("single-1", 1000, 1.5), "between 0 and 1"),
        (("multiquery", 150, 0.5), "greater length"),
        (("single-3", 90_000, 0.5), "give more distractors"),
    ],
)
def test_what_cannot_be_made_says_why(arguments, says):
    with pytest.raises(ConfigError, match=says):
        make_task(*arguments, 0, count, FILLER if arguments[0] == "single-3" else ())


def test_filler_that_says_a_value_gets_another_value():
    [first] = make_task("single-3", 500, 0.5, 0, count, FILLER[:200]).dataset.questions
    told = [Document(d.id, f"{d.text} It is {first.answers[0]}.") for d in FILLER[:200]]
    [again] = make_task("single-3", 500, 0.5, 0, count, told).dataset.questions
    assert again.text == first.text and again.answers != first.answers


@pytest.mark.parametrize(
    ("reply", "expected", "share"),
    [
        ("It is 4,829,173.", ["4829173"], 1.0),
        ("14829173", ["4829173"], 0.0),
        ("Sly Otter", ["sly-otter"], 1.0),
        ("sly otters", ["sly-otter"], 0.0),
        ("1234567, 7654321", ["1234567", "7654321", "1111111", "2222222"], 0.5),
        ("", ["1234567"], 0.0),
    ],
)
def test_answers_count_by_the_values_they_hold(reply, expected, share):
    assert answered(reply, expected) == share


def test_systems_are_measured_in_every_cell(tmp_path):
    with Results(tmp_path) as results:
        rows = _run(results, ["oracle", "blind", "absent"])
        value = {(r.system, r.metric, r.settings["task"], r.settings["depth"]): r.value for r in rows}
        assert len(value) == len(rows) == 2 * 2 * 2 * 2
        assert value["oracle", "recall", "multivalue", 1.0] == 1
        assert value["oracle", "answered", "multivalue", 1.0] == 0.75
        assert value["blind", "recall", "single-1", 0.0] == 1
        assert value["blind", "recall", "single-1", 1.0] == 0
        assert value["blind", "recall", "multivalue", 0.0] == 0.25
        assert {r.n for r in rows} == {2}
        assert all(r.documents > 5 and 700 < r.tokens <= 1000 for r in rows)
        [skip] = [r for r in results.rows() if r.metric == SKIPPED]
        assert (skip.system, skip.settings["reason"]) == ("absent", 'pip install "msa-plugin[bench]"')
        assert _run(results, ["oracle", "blind"]) == []  # nothing is measured twice
        assert {r.system for r in _run(results, ["oracle"], depths=(0.0, 0.5, 1.0))} == {"oracle"}


def test_intervals_need_more_than_one_haystack(tmp_path):
    with Results(tmp_path / "one") as one, Results(tmp_path / "two") as two:
        assert {(r.low, r.high) for r in _run(one, ["oracle"], samples=1)} == {(None, None)}
        assert all(r.low is not None and r.low <= r.value <= r.high for r in _run(two, ["oracle"]))


def _run(results, systems, depths=(0.0, 1.0), samples=2):
    cells = {"lengths": (1000,), "depths": depths, "tasks": ("single-1", "multivalue")}
    config = NeedleConfig(systems=tuple(systems), out=results.out, samples=samples, **cells)
    before = results.rows()
    words = SimpleNamespace(backbone=SimpleNamespace(tokenize=str.split))
    measure(config, Bare("needle", results, words, Path(), {}, made))
    return [row for row in results.rows() if row not in before and row.metric != SKIPPED]


def test_a_run_on_a_memory_is_kept_and_goes_on(tmp_path, backbone, adapter):
    class Routed(Oracle):
        def _hits(self, question):
            hits = self.workspace.memory.retrieve(question, 5)
            assert self.workspace.memory.stats().documents == len(self.workspace.dataset.documents)
            yield from (Scored(h.id, h.score) for h in hits)

    config = {"systems": ("msa",), "out": tmp_path, "lengths": (2500,), "depths": (0.5,)}
    steps = []
    watch = Watch()
    watch.step = lambda what, done, total: steps.append(what)

    def go(**changes):
        return needles(
            NeedleConfig(**{**config, "tasks": ("single-1",), **changes}),
            create=Routed,
            backbone=backbone,
            adapter=adapter,
            watch=watch,
        )

    rows = go()
    assert {r.metric for r in rows} == {"recall", "answered"}
    assert all(0 <= r.value <= 1 and r.commit == rows[0].commit and r.hardware for r in rows)
    assert len(go(depths=(0.5, 1.0))) == 4
    assert "single-1, 2,500 tokens, depth 1" in steps
    with pytest.raises(ConfigError, match="another configuration"):
        go(k=1)
    assert {r.settings["depth"] for r in go(k=1, fresh=True)} == {0.5}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"depths": (1.2,)}, "depths between 0 and 1"),
        ({"tasks": ("single-9",)}, "single-9"),
        ({"lengths": (8, 8)}, "distinct"),
        ({"lenghts": (8,)}, "lenghts"),
    ],
)
def test_bad_settings_are_refused(tmp_path, wrong, says):
    with pytest.raises(ConfigError, match=says):
        NeedleConfig(systems=("msa",), out=tmp_path, **wrong)
