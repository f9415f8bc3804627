"""The training loop: it learns, survives being killed, refuses what it must, and says what it did."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_objective import Regression, config

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.errors import ConfigError, TrainingError
from msa_plugin.training import checkpoint, trainer
from msa_plugin.training.checkpoint import Checkpoints
from msa_plugin.training.curves import Curve
from msa_plugin.training.settings import TrainConfig
from msa_plugin.training.trainer import Trainer, recover_folder, replace_folder

TOY = Path(__file__).with_name("toy_objective.py")
DRAW = Curve.draw


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    """Drawing takes longer than these trainings."""
    monkeypatch.setattr(Curve, "draw", lambda curve, path: None)


def lines(out):
    return [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]


def learnt(out):
    """What must repeat exactly: everything but times."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in lines(out)]


def start(out, *words):
    return subprocess.Popen([sys.executable, str(TOY), str(out), *words], stdout=subprocess.PIPE, text=True)


def wait_for_steps(out, count, process, limit=120):
    for _ in range(limit * 20):
        path = out / "curve.jsonl"
        if path.exists() and path.read_text().count("\n") >= count:
            return
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.05)
    raise AssertionError("it does not get on")


def test_it_learns_and_leaves_its_traces(tmp_path, monkeypatch):
    monkeypatch.setattr(Curve, "draw", DRAW)
    objective = Regression()
    done = Trainer(objective, config(steps=150), tmp_path, about={"recipe": "toy"}).run()
    found = lines(tmp_path)
    assert (done.step, done.finished, done.tokens) == (150, True, 150 * 48)
    assert found[-1]["loss"] < 0.2 * found[0]["loss"]
    assert [line["step"] for line in found] == list(range(1, 151))
    assert {"lr", "loss", "parts", "norm", "tokens", "tokens_per_second", "seconds"} <= set(found[0])
    assert found[-1]["held_out"] == objective.evaluate() == done.measured
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000147", "step-00000150"]
    adapter = Adapter.load(done.adapter)
    assert torch.equal(adapter.router.layers[1].q_weight, objective.q)
    said = adapter.config.provenance
    assert said["recipe"] == "toy" and said["training"]["steps"] == 150
    assert {"hours", "hardware", "commit", "versions", "devices"} <= set(said)
    assert adapter.config.measured["step"] == 150 and "distance" in adapter.config.measured


def test_the_update_is_that_of_adamw(tmp_path):
    ours, plain = Regression(), Regression()
    Trainer(ours, config(steps=4, warmup=0, schedule="constant", clip=None), tmp_path).run()
    optimizer = torch.optim.AdamW([plain.q, plain.k], lr=0.05, weight_decay=0.0)
    for step in range(4):
        torch.manual_seed(step)
        plain.losses(step).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(ours.q, plain.q, rtol=0, atol=0)
    assert torch.equal(ours.idle, torch.zeros(3))


@pytest.mark.slow
def test_accumulation_is_the_mean_over_micro_batches(tmp_path):
    class Both(Regression):
        def losses(self, batch):
            halves = []
            for part in (2 * batch, 2 * batch + 1):
                torch.manual_seed(part)
                halves.append(Regression.losses(self, part))
            return halves[0].__class__(torch.stack([h.total for h in halves]).mean(), {}, 96)

    two, one = Regression(), Both()
    Trainer(two, config(accumulate=2, clip=None), tmp_path / "two").run()
    Trainer(one, config(clip=None), tmp_path / "one").run()
    assert two.seen == list(range(24))
    torch.testing.assert_close(two.q, one.q)


def test_gradients_are_clipped(tmp_path):
    found = []
    training = Trainer(Regression(), config(steps=3, warmup=0, clip=0.01), tmp_path)
    update = training.optimizer.step
    training.optimizer.step = lambda: (
        found.append(sum(float(p.grad.square().sum()) for p in training.parameters.values() if p.grad is not None)),
        update(),
    )
    training.run()
    assert all(value == pytest.approx(0.01**2, rel=1e-3) for value in found)
    assert all(line["norm"] > 0.01 for line in lines(tmp_path))


def test_factors_and_schedules():
    c = TrainConfig(steps=11, lr=1.0, warmup=2, schedule="linear", floor=0.2, factors={"router.": 3, "router.5": 2})
    assert [round(c.rate(s), 6) for s in (1, 2, 3, 7, 11)] == [0.5, 1.0, 1.0, 0.6, 0.2]
    assert (c.factor("router.5.k_weight"), c.factor("router.1.q"), c.factor("lora.1")) == (2, 3, 1)
    cosine = TrainConfig(steps=5, lr=2.0, schedule="cosine", floor=0.5)
    assert [round(cosine.rate(s), 6) for s in (1, 3, 5)] == [2.0, 1.5, 1.0]
    assert TrainConfig(steps=9, lr=2.0).rate(9) == 2.0


def test_learning_rates_reach_the_parameters(tmp_path):
    training = Trainer(Regression(), config(factors={"lora.": 0.5}, weight_decay=0.1), tmp_path)
    groups = {(g["factor"], g["weight_decay"]): len(g["params"]) for g in training.optimizer.param_groups}
    assert groups == {(1.0, 0.1): 2, (0.5, 0.0): 1}
    training.run()
    rates = {g["factor"]: g["lr"] for g in training.optimizer.param_groups}
    assert rates[0.5] == pytest.approx(rates[1.0] / 2)


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path):
    Trainer(Regression(), config(evaluate_every=4, best="-distance"), tmp_path / "whole").run()
    settings = json.dumps({"evaluate_every": 4, "best": "-distance"})
    for steps in (2, 8):  # before the first checkpoint, and after the second
        process = start(tmp_path / "torn", "--pause", "0.15", "--settings", settings)
        wait_for_steps(tmp_path / "torn", steps + 1, process)  # and the line of step 0
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    done = start(tmp_path / "torn", "--settings", settings)
    assert json.loads(done.communicate(timeout=120)[0]) == {"step": 12, "finished": True}
    assert learnt(tmp_path / "torn") == learnt(tmp_path / "whole")
    for name in ("checkpoints/step-00000012/state.safetensors", "adapter/adapter.safetensors"):
        whole, torn = (load_file(str(tmp_path / which / name)) for which in ("whole", "torn"))
        assert whole.keys() == torn.keys() and all(torch.equal(whole[k], torn[k]) for k in whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_with_a_checkpoint(tmp_path, number):
    class Signalled(Regression):
        def losses(self, batch):
            if batch == 4:
                signal.raise_signal(number)
            return super().losses(batch)

    before = signal.getsignal(number)
    done = Trainer(Signalled(), config(), tmp_path).run()
    assert (done.step, done.finished) == (5, False) and signal.getsignal(number) is before
    assert Checkpoints(tmp_path).latest().name == "step-00000005"
    Trainer(Regression(), config(), tmp_path / "whole").run()
    Trainer(Regression(), config(), tmp_path).run()
    assert learnt(tmp_path) == learnt(tmp_path / "whole")


def test_a_finished_training_is_not_repeated(tmp_path):
    first = Regression()
    Trainer(first, config(), tmp_path).run()
    before, again = lines(tmp_path), Regression()
    done = Trainer(again, config(), tmp_path).run()
    assert done.finished and again.seen == [] and lines(tmp_path) == before
    assert torch.equal(again.q, first.q) and done.adapter == tmp_path / "adapter"


def test_a_loss_that_is_no_number_stops_it_and_keeps_what_was_learnt(tmp_path):
    objective = Regression(nan_at=7)
    with pytest.raises(TrainingError, match=r"micro-batch 7 \(step 8\) is nan.*step-00000007"):
        Trainer(objective, config(), tmp_path).run()
    assert torch.isfinite(objective.q).all() and Checkpoints(tmp_path).latest().name == "step-00000007"
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 8))


def test_a_gradient_that_is_no_number_stops_it(tmp_path):
    class Exploding(Regression):
        def losses(self, batch):
            found = super().losses(batch)
            extra = torch.sqrt(self.idle.square().sum()) * 0 if batch == 2 else 0  # 0/0 in the backward pass
            return found.__class__(found.total + extra, {}, 1)

    with pytest.raises(TrainingError, match="gradient of step 3"):
        Trainer(Exploding(), config(), tmp_path).run()
    assert Checkpoints(tmp_path).latest().name == "step-00000002"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "about", "word"),
    [({"lr": 0.1}, {}, "training.lr: it has 0.05, this one 0.1"), ({}, {"data": {"a": "2"}}, "data.a"),
     ({"steps": 99}, {}, "training.steps")],
)  # fmt: skip
def test_another_training_does_not_go_on_here(tmp_path, changes, about, word):
    Trainer(Regression(), config(), tmp_path, about={"data": {"a": "1"}}).run()
    with pytest.raises(TrainingError, match=word):
        Trainer(Regression(), config(**changes), tmp_path, about={"data": {"a": "1"}, **about}).run()


def test_how_often_it_is_saved_may_change(tmp_path):
    Trainer(Regression(), config(), tmp_path).run()
    assert Trainer(Regression(), config(checkpoint_every=5, keep=4, evaluate_every=2), tmp_path).run().finished


def test_other_parameters_do_not_go_on_here(tmp_path):
    Trainer(Regression(), config(), tmp_path).run()
    other = Regression()
    other.parameters.pop("lora.1.idle")
    with pytest.raises(TrainingError, match="parameters"):
        Trainer(other, config(), tmp_path).run()


def test_the_best_is_kept_beside_the_last(tmp_path):
    class Worsening(Regression):
        def evaluate(self):
            return {"figure": {0: 1.0, 4: 3.0, 8: 2.0}[len(self.seen)]}

    objective = Worsening()
    Trainer(objective, config(steps=8, evaluate_every=4, best="figure"), tmp_path).run()
    best, last = Adapter.load(tmp_path / "adapter"), Adapter.load(tmp_path / "adapter-last")
    assert best.config.measured == {"step": 4, "figure": 3.0} and last.config.measured["step"] == 8
    assert torch.equal(last.router.layers[1].q_weight, objective.q)
    assert not torch.equal(best.router.layers[1].q_weight, objective.q)
    assert [line["held_out"]["figure"] for line in lines(tmp_path) if "held_out" in line] == [1.0, 3.0, 2.0]


def test_wrong_settings_are_refused(tmp_path):
    for changes in ({"warmup": 12}, {"lr": 0}, {"betas": (0.9, 1.0)}, {"factors": {"a": 0}}, {"unknown": 1}):
        with pytest.raises(ConfigError):
            config(**changes)
    with pytest.raises(ConfigError, match=r"no parameter is called rooter"):
        Trainer(Regression(), config(factors={"rooter": 2}), tmp_path)
    with pytest.raises(ConfigError, match="nothing measures 'recall'; there are distance"):
        Trainer(Regression(), config(best="recall"), tmp_path).run()


@pytest.mark.slow
def test_a_full_disk_names_the_file_and_what_stands(tmp_path, monkeypatch):
    written = checkpoint.write_atomic

    def full(path, text):
        if "step-00000006" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written(path, text)

    monkeypatch.setattr(checkpoint, "write_atomic", full)
    with pytest.raises(TrainingError, match=r"No space left.*checkpoint of step 3 stands"):
        Trainer(Regression(), config(), tmp_path).run()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.undo()
    assert Trainer(Regression(), config(), tmp_path).run().finished
    Trainer(Regression(), config(), tmp_path / "whole").run()
    assert learnt(tmp_path) == learnt(tmp_path / "whole")


def test_a_damaged_checkpoint_is_told(tmp_path):
    Trainer(Regression(), config(), tmp_path).run()
    path = Checkpoints(tmp_path).latest() / "state.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"cannot be read.*remove it"):
        Trainer(Regression(), config(), tmp_path).run()


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "adapter"
    for text in "ab":
        replace_folder(folder, lambda draft, text=text: (draft.mkdir(), (draft / "f").write_text(text)))
    assert (folder / "f").read_text() == "b" and len(list(tmp_path.iterdir())) == 1
    folder.rename(tmp_path / ".adapter.old")  # as if killed halfway
    recover_folder(folder)
    assert (folder / "f").read_text() == "b"


def test_progress_counts_steps_and_tokens(tmp_path):
    seen = []
    Trainer(Regression(), config(steps=3), tmp_path).run(seen.append)
    assert [(p.documents, p.tokens, p.total) for p in seen] == [(i, 48 * i, 3) for i in range(4)]


def test_a_torn_line_is_written_again(tmp_path):
    Trainer(Regression(), config(), tmp_path).run()
    path = tmp_path / "curve.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [line["step"] for line in Curve(path, 9).lines] == list(range(1, 10))


def test_bf16_computes_in_bf16_and_keeps_float32(tmp_path):
    kinds = set()

    class Watched(Regression):
        def losses(self, batch):
            kinds.add((self.q @ self.q.T).dtype)
            return super().losses(batch)

    objective = Watched()
    Trainer(objective, config(precision="bf16", steps=3), tmp_path).run()
    assert kinds == {torch.bfloat16} and objective.q.dtype == torch.float32


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_bf16_where_that_is_fast(monkeypatch, fast):
    monkeypatch.setattr(trainer, "trains_faster_in_bfloat16", lambda: fast)
    a = torch.ones(2, 2)
    with trainer.precision(config(precision="auto"), torch.device("cpu")):
        assert (a @ a).dtype == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_twice_the_micro_batches(tmp_path):
    Trainer(Regression(), config(accumulate=2, evaluate_every=6), tmp_path / "one").run()
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    words = [str(TOY), str(tmp_path / "two"), "--settings", '{"evaluate_every": 6}']
    done = subprocess.run([*program, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["step"] for line in two] == [line["step"] for line in one]
    for mine, theirs in zip(one[1:], two[1:], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["tokens"] == theirs["tokens"]
    tensors = [load_file(str(tmp_path / w / "adapter" / "adapter.safetensors")) for w in ("one", "two")]
    for name in tensors[0]:
        torch.testing.assert_close(tensors[0][name], tensors[1][name])
