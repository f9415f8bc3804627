"""Rows of memories that grow, made again from what was kept of each question, in a packed copy as well."""

from __future__ import annotations

import json
from dataclasses import replace
from shutil import copytree

import pytest
from growth_toys import corpus, distractors
from pack_run import pack
from toy_systems import Words, create

from msa_plugin.bench.base import Reply
from msa_plugin.bench.driver import Run
from msa_plugin.bench.growth import Banks
from msa_plugin.bench.latency import LatencyCommand
from msa_plugin.bench.needle import NeedleConfig, measure
from msa_plugin.bench.recompute import recompute
from msa_plugin.bench.scale import ScaleCommand
from msa_plugin.bench.store import Results
from msa_plugin.config import MemoryConfig
from tiny import tiny_adapter, tiny_backbone

CONFIG = MemoryConfig(dtype="float32", instruction="Be brief.", context_tokens=512)
COARSE = "coarse:all@candidates=8"


class Tells(Words):
    """Finds by words, and replies with the best passage."""

    def answer(self, questions):
        texts = {d.id: d.text for d in self.workspace.dataset.documents}
        best = [found.ranking[0].id for found in self.find(questions, 1)]
        return [Reply(texts[name], (name,), {}, 1, 1) for name in best]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with all three parts."""
    folder = tmp_path_factory.mktemp("grown")
    backbone = tiny_backbone()
    banks = Banks(folder / "cache", backbone, tiny_adapter(backbone), CONFIG)
    with Results(folder / "out") as results:
        results.configure("scale", {"seed": 0})
        grown = {"questions": 8, "answers": 3, "passages": 2, "prefilter": COARSE}
        scale = ScaleCommand(out=folder, systems=("msa", "words"), sizes=(700, 1500, 2500), **grown)
        run = Run("scale", results, banks, folder / "cache", {"max_new_tokens": 2}, create)
        scale.over(run, corpus(), distractors())
        asked = {"questions": 3, "repeats": 2, "prefilter": COARSE}
        latency = LatencyCommand(out=folder, systems=("msa-interleave", "iterative:words"), sizes=(700, 1500), **asked)
        latency.over(replace(run, part="latency"), corpus(), distractors())
        hidden = {"lengths": (8000,), "depths": (0.0, 1.0), "tasks": ("single-1", "multivalue"), "samples": 2}
        needles = replace(run, part="needle", create=lambda _, w: Tells(w))
        measure(NeedleConfig(systems=("tells",), out=folder, **hidden), needles)
    return folder / "out"


def said(rows):
    """Everything that rows say but where they come from."""
    return {
        (r.part, r.dataset, r.system, r.metric, json.dumps(r.settings, sort_keys=True)):
        (r.value, r.low, r.high, r.n, r.documents, r.tokens)
        for r in rows
    }  # fmt: skip


def test_values_follow_from_the_questions_alone(done, tmp_path):
    small = pack(done, tmp_path / "small")
    everything = Results(done).rows()
    parts = {"scale", "latency", "needle"}
    assert {r.part for r in everything} == {*parts, "cost"}
    assert {"relative_loss", "prefilter_recall@10", "EM", "answered", "recall"} <= {r.metric for r in everything}
    with Results(small) as results:
        results.rewrite([r if r.part == "cost" or r.metric == "note" else _spoiled(r) for r in everything])
    assert recompute(small) == sum(r.part in parts and r.metric != "note" for r in everything)
    assert said(Results(small).rows()) == said(everything)
    assert {r.date for r in Results(small).rows()} == {r.date for r in everything}


def _spoiled(row):
    return type(row)(**{**row.to_dict(), "value": 7.0, "low": 6.0, "high": 8.0})


def test_metrics_follow_from_rankings_and_replies(done, tmp_path):
    with Results(copytree(done, tmp_path / "small")) as results:
        for part, dataset, system, emptied in (
            ("scale", "toy", "words", {"ranking": [], "reply": ""}),
            ("needle", "needle", "tells", {"found": [], "reply": ""}),
        ):
            records = results.questions(part, dataset, system)
            path = results.question_file(part, dataset, system)
            path.write_text("".join(json.dumps({n: emptied.get(n, v) for n, v in r.items()}) + "\n" for r in records))
    recompute(tmp_path / "small")
    changed = [r for r in Results(tmp_path / "small").rows() if r.system in ("words", "tells") and r.part != "latency"]
    scores = {r.metric: r.value for r in changed if "seconds" not in r.metric and r.part != "cost"}
    assert scores == dict.fromkeys(("R@5", "R@10", "nDCG@10", "EM", "F1", "recall", "answered"), 0.0)


def test_a_size_that_was_measured_again_counts_once_and_one_that_did_not_finish_not_at_all(done, tmp_path):
    small = copytree(done, tmp_path / "small")
    before = said(Results(small).rows())
    with Results(small) as results:
        for part, dataset in (("scale", "toy"), ("latency", "toy"), ("needle", "needle")):
            for _, system in (pair for pair in results.question_sets(part) if pair[0] == dataset):
                records = results.questions(part, dataset, system)
                old = [{**r, "ranking": [], "found": [], "seconds": []} for r in records[:2]]
                lost = [{**r, "memory_tokens": 9, "length": 9} for r in records[:1]] if part != "scale" else []
                text = "".join(json.dumps(r) + "\n" for r in [*old, *records, *lost])
                results.question_file(part, dataset, system).write_text(text)
    recompute(small)
    assert said(Results(small).rows()) == before


def test_records_of_an_older_run_keep_the_metrics_they_have(done, tmp_path):
    small = copytree(done, tmp_path / "small")
    before = said(Results(small).rows())
    with Results(small) as results:
        records = results.questions("scale", "toy", "words")
        assert all({"positives", "answers", "R@5"} <= set(r) for r in records)
        older = [{n: v for n, v in r.items() if n not in ("positives", "answers")} for r in records]
        results.question_file("scale", "toy", "words").write_text("".join(json.dumps(r) + "\n" for r in older))
    recompute(small)
    assert said(Results(small).rows()) == before
