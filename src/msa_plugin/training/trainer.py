"""The training loop: whatever the objective, AdamW steps that can be killed at any moment and gone on from.

Micro-batches are numbered from 0 over all devices: step s (from 1) takes those from (s - 1) * accumulate * devices on.
An objective computes them from seed and number alone, so a resumed training repeats an uninterrupted one exactly.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.cpu import trains_faster_in_bfloat16
from msa_plugin.errors import MissingExtraError, TrainingError
from msa_plugin.measuring.provenance import Provenance, now
from msa_plugin.training.checkpoint import Checkpoints, RunState, writing
from msa_plugin.training.curves import HELD_OUT, Curve
from msa_plugin.training.devices import Devices
from msa_plugin.training.interrupts import Wish, graceful
from msa_plugin.training.settings import FREE, TrainConfig
from msa_plugin.types import OnProgress, Progress

_LOG = logging.getLogger("msa_plugin.training")
_DRAW_SECONDS = 60


@dataclass(frozen=True)
class Losses:
    """What one micro-batch gives: `total` (scalar, with gradients), what curves show, backbone tokens it took."""

    total: Tensor
    parts: Mapping[str, float]
    tokens: int


class Objective(Protocol):
    """What is minimised. `parameters` are the leaves that train, by the names that an adapter's file gives them."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """Trained in place: float32, one object each for the whole training."""
        ...

    def losses(self, batch: int) -> Losses:
        """Of micro-batch number `batch`, a function of seed and number alone."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Held-out figures; {} if there are none."""
        ...

    def adapter(self, measured: Mapping[str, Any]) -> Adapter:
        """What is trained so far, ready to be saved."""
        ...


@dataclass(frozen=True)
class Trained:
    """How a run ended: after `step` steps, `finished` or called off; `measured` last, and where the adapter lies."""

    step: int
    finished: bool
    seconds: float
    tokens: int
    measured: Mapping[str, float]
    adapter: Path | None


class Trainer:
    """Trains an objective in the folder `out`: `run.json`, `curve.jsonl`, `curve.png`, checkpoints, adapters.

    `out`/adapter is the one to use: the best by `config.best`, or the last where that is not set; `out`/adapter-last
    is the last one where there is a best.
    """

    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        out: Path,
        *,
        about: Mapping[str, Any] | None = None,
        devices: Devices | None = None,
    ) -> None:
        """`about` says what else the training is made of (recipe, hashes of data and backbone): goes with the adapter.

        Raises ConfigError for factors that fit no parameter, TrainingError when nothing trains.
        """
        self.objective, self.config, self.out = objective, config, out.resolve()
        self.about = dict(about or {})
        self.devices = devices or Devices()
        self.parameters = dict(objective.parameters)
        if not self.parameters:
            raise TrainingError("nothing trains: the objective has no parameter")
        config.check_names(self.parameters)
        self.optimizer = torch.optim.AdamW(self._groups(), lr=config.lr, betas=config.betas, eps=config.eps)
        self.checkpoints = Checkpoints(self.out)
        self.measured: dict[str, float] = {}
        self._drawn = time.monotonic()

    def run(self, on_progress: OnProgress | None = None) -> Trained:
        """Train to the end, from the newest checkpoint in `out` if there is one.

        SIGINT and SIGTERM finish the step at hand, write a checkpoint and return. Progress counts steps. Raises
        TrainingError for a loss that is no number, for the folder of another training, and for a disk that refuses.
        """
        if self.devices.main:
            self.checkpoints.claim(self._identity(), FREE)
            recover_folder(self.out / "adapter")
        self.devices.wait()
        state = self.checkpoints.restore(self.parameters, self.optimizer)
        if state.step >= self.config.steps:
            return self._ended(state, finished=True)
        curve = Curve(self.out / "curve.jsonl", state.step) if self.devices.main else None
        kinds = [d for d in {p.device for p in self.parameters.values()} if d.type == "cuda"]
        with torch.random.fork_rng(kinds), graceful() as wish:
            return self._train(state, curve, wish, on_progress)

    # The loop

    def _train(self, state: RunState, curve: Curve | None, wish: Wish, on_progress: OnProgress | None) -> Trained:
        self._show(on_progress, state, 0)
        begun, before, tokens = time.perf_counter(), state.seconds, state.tokens
        if state.step == 0 and self.config.evaluate_every:
            state = self._evaluate(state, {"step": 0}, curve)
        while state.step < self.config.steps and not wish.stop:
            started, step = time.perf_counter(), state.step + 1
            line = self._step(state, wish)
            took, spent = time.perf_counter() - started, before + time.perf_counter() - begun
            line |= {"tokens_per_second": round(line["tokens"] / took, 1), "seconds": round(spent, 3)}
            state = dataclasses.replace(state, step=step, seconds=spent, tokens=state.tokens + line["tokens"])
            last = step == self.config.steps
            if last or (self.config.evaluate_every and step % self.config.evaluate_every == 0):
                state = self._evaluate(state, line, curve)
            elif curve is not None:
                self._add(curve, line, state)
            if last or wish.stop or step % self.config.checkpoint_every == 0:
                self._save(state, curve)
            self._show(on_progress, state, state.tokens - tokens)
        finished = state.step == self.config.steps
        if not finished and self.devices.main:
            _LOG.warning("stopped after step %d of %d; the same command goes on from there", state.step,
                         self.config.steps)  # fmt: skip
        return self._ended(state, finished=finished)

    def _step(self, state: RunState, wish: Wish) -> dict[str, Any]:
        """One step: micro-batches, averaged gradients, clipping, update. Returns the curve's line."""
        step = state.step + 1
        said = self.devices.gather({"micro": self._micro_batches(step), "stop": wish.stop})
        wish.stop = wish.stop or any(s["stop"] for s in said)
        micro = sorted((m for s in said for m in s["micro"]), key=lambda m: m["batch"])
        for m in micro:
            if not _finite(m["loss"]):
                self._refuse(state, f"the loss of micro-batch {m['batch']} (step {step}) is {m['loss']}")
        self.devices.average(self.parameters.values())
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.clip or math.inf))
        if not _finite(norm):
            numbers = f"{micro[0]['batch']} to {micro[-1]['batch']}"
            self._refuse(state, f"the gradient of step {step} (micro-batches {numbers}) is {norm}")
        rate = self.config.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        names = dict.fromkeys(name for m in micro for name in m["parts"])
        parts = {name: _mean([m["parts"][name] for m in micro if name in m["parts"]]) for name in names}
        tokens = sum(m["tokens"] for m in micro)
        loss = _mean([m["loss"] for m in micro])
        return {"step": step, "lr": rate, "loss": loss, "parts": parts, "norm": norm, "tokens": tokens}

    def _micro_batches(self, step: int) -> list[dict[str, Any]]:
        """Run this process's share of a step's micro-batches backwards; stops at the first that is no number."""
        found = []
        share, count = self.config.accumulate, self.devices.count
        for i in range(share):
            batch = ((step - 1) * share + i) * count + self.devices.rank
            torch.manual_seed(self.config.seed * 1_000_003 + batch)
            with precision(self.config, next(iter(self.parameters.values())).device):
                losses = self.objective.losses(batch)
            loss = float(losses.total.detach())
            parts = {name: value if _finite(value) else str(value) for name, value in losses.parts.items()}
            found.append({"batch": batch, "loss": loss, "parts": parts, "tokens": losses.tokens})
            if not _finite(loss):
                break
            (losses.total / share).backward()  # type: ignore[no-untyped-call]
        return found

    def _refuse(self, state: RunState, what: str) -> None:
        """Keep what the steps before taught, and raise TrainingError."""
        good = all(bool(torch.isfinite(p).all()) for p in self.parameters.values())
        if good and self.devices.main and state.step:
            self.checkpoints.save(state, self.parameters, self.optimizer, self.config.keep)
        latest = self.checkpoints.latest()
        kept = f"{latest} holds what the steps before taught" if latest else "no checkpoint was written yet"
        raise TrainingError(
            f"{what}; {kept}. Look at that batch's samples; a lower lr (now {self.config.lr:g}), a longer warmup, "
            "a smaller clip or precision 'float32' usually help, in a new folder"
        )

    # What is written

    def _evaluate(self, state: RunState, line: dict[str, Any], curve: Curve | None) -> RunState:
        """Measure held-out figures into `line` and write it; save the adapter if it is the best so far."""
        if curve is not None:
            with torch.no_grad():
                found = dict(self.objective.evaluate())
            self.measured = found
            better = self.config.better(found, state.best)
            self._add(curve, {**line, HELD_OUT: found} if found else line, state)
            if better is not None:
                state = dataclasses.replace(state, best=better)
                self._save_adapter("adapter", state)
        self.devices.wait()
        return state

    def _add(self, curve: Curve, line: Mapping[str, Any], state: RunState) -> None:
        with writing(curve.path, f"checkpoints up to step {state.step} stand"):
            curve.add(line)

    def _save(self, state: RunState, curve: Curve | None) -> None:
        if curve is not None:
            if state.step == self.config.steps:  # before the checkpoint, which says that all is done
                self._save_adapter("adapter" if state.best is None else "adapter-last", state)
            self.checkpoints.save(state, self.parameters, self.optimizer, self.config.keep)
            self._draw(curve, at_once=state.step == self.config.steps)
        self.devices.wait()

    def _draw(self, curve: Curve, *, at_once: bool) -> None:
        """Draw the curves; at most every minute, because that takes a second."""
        if not at_once and time.monotonic() - self._drawn < _DRAW_SECONDS:
            return
        self._drawn = time.monotonic()
        try:
            with writing(self.out / "curve.png", "the checkpoint was written"):
                curve.draw(self.out / "curve.png")
        except MissingExtraError as error:
            _LOG.info("no curve.png: %s", error)

    def _save_adapter(self, name: str, state: RunState) -> None:
        measured = {"step": state.step, **self.measured}
        adapter = self.objective.adapter(measured)
        notes = {**adapter.config.provenance, **self._provenance(state)}
        config = adapter.config.model_copy(update={"provenance": notes, "measured": measured})
        with writing(self.out / name, "checkpoints stand"):
            replace_folder(self.out / name, dataclasses.replace(adapter, config=config).save)

    def _provenance(self, state: RunState) -> dict[str, Any]:
        here = Provenance.here()
        return {
            **self.about,
            "training": self.config.model_dump(mode="json"),
            "devices": self.devices.count,
            "hours": round(state.seconds / 3600, 4),
            "tokens": state.tokens,
            "hardware": here.hardware,
            "commit": here.commit,
            "versions": dict(here.versions),
            "command": here.command,
            "date": now(),
        }

    def _ended(self, state: RunState, *, finished: bool) -> Trained:
        folder = self.out / "adapter"
        there = folder if (folder / "adapter.json").exists() else None
        return Trained(state.step, finished, state.seconds, state.tokens, self.measured, there)

    def _show(self, on_progress: OnProgress | None, state: RunState, tokens: int) -> None:
        if on_progress is not None and self.devices.main:
            on_progress(Progress(state.step, tokens, self.config.steps))

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        shapes = {name: list(p.shape) for name, p in self.parameters.items()}
        return {
            "training": self.config.model_dump(mode="json"),
            "devices": self.devices.count,
            "parameters": json.dumps(shapes, sort_keys=True),
            **self.about,
        }

    def _groups(self) -> list[dict[str, Any]]:
        """Parameters by learning-rate factor and by whether they decay."""
        groups: dict[tuple[float, bool], list[Tensor]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault((self.config.factor(name), parameter.ndim > 1), []).append(parameter)
        return [
            {"params": some, "factor": factor, "weight_decay": self.config.weight_decay if decays else 0.0}
            for (factor, decays), some in groups.items()
        ]


def precision(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """What micro-batches are computed within."""
    slow = device.type == "cpu" and not trains_faster_in_bfloat16()
    plain = config.precision == "float32" or (config.precision == "auto" and slow)
    return nullcontext() if plain else torch.autocast(device.type, dtype=torch.bfloat16)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a new folder, then put it in the place of `folder`, which is old or new but never half."""
    draft, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    recover_folder(folder)
    shutil.rmtree(draft, ignore_errors=True)
    write(draft)
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put back what a process moved away that was killed before the new one had taken its place."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _mean(values: Sequence[Any]) -> float | None:
    """Of the numbers among them; None where there are none."""
    numbers = [v for v in values if _finite(v)]
    return sum(numbers) / len(numbers) if numbers else None
