"""The prepared run on a GPU, dry: every step leaves its figures, and one that fails stops no other."""

import json

import pytest
import torch
from gpu_check import GpuCheck, GpuPlan, made_questions, main, summary

from msa_plugin.backbone.backbone import Backbone
from tiny import tiny_adapter, tiny_backbone

STEPS = ["environment", "tests", "kernels", "routing", "encoding", "asking", "training", "memory"]


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone(max_position_embeddings=4096)


def check(out, backbone):
    return GpuCheck(out, GpuPlan.dry(), torch.device("cpu"), backbone, tiny_adapter(backbone))


@pytest.mark.slow
def test_a_dry_run_does_every_step(tmp_path, backbone):
    found = check(tmp_path, backbone).run()
    assert list(found) == STEPS and not [s for s in found.values() if "error" in s]
    assert json.loads((tmp_path / "gpu-check.json").read_text()).keys() == found.keys()
    assert [row["chunks"] for row in found["routing"]["figures"]] == [2_000, 5_000]
    assert all(row["faiss_over_ours"] > 0 for row in found["routing"]["figures"])
    [trained] = found["training"]["figures"]
    assert trained["recipe"] == "gpu-reader" and trained["phases"][1]["tokens_per_second"] > 0
    assert {"prefill", "decode", "seconds"} <= found["asking"]["figures"].keys()
    assert "tokens_per_second" in (tmp_path / "gpu-check.txt").read_text() or "phases" in summary(found)


def test_a_step_that_fails_is_written_down_and_the_next_one_runs(tmp_path, backbone, monkeypatch):
    def broken(self):
        # What was found before this step is on the disk already.
        assert list(json.loads((tmp_path / "gpu-check.json").read_text())) == STEPS[:4]
        raise RuntimeError("out of memory")

    monkeypatch.setattr(GpuCheck, "encoding", broken)
    for other in ("kernels", "routing", "asking", "training"):  # minutes of what the run above has done
        monkeypatch.setattr(GpuCheck, other, lambda self: [])
    found = check(tmp_path, backbone).run()
    assert found["encoding"]["error"] == "RuntimeError: out of memory" and "error" not in found["memory"]
    assert "encoding" in summary(found) and "FAILED" in summary(found)


def test_without_a_gpu_it_says_what_to_do(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SystemExit, match="--dry-run"):
        main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_made_questions_can_be_answered():
    made = made_questions(50)
    texts = {d.id: d.text for d in made.documents}
    assert len(made.questions) == 50
    assert all(q.answers[0] in texts[next(iter(q.positives))] for q in made.questions)


def test_it_loads_the_backbone_once(tmp_path, backbone, monkeypatch):
    run = GpuCheck(tmp_path, GpuPlan.dry(), torch.device("cpu"))
    calls = []
    monkeypatch.setattr(Backbone, "load", lambda *a, **k: calls.append(1) or backbone)
    assert run.backbone is run.backbone and calls == [1]
