"""From a recipe and a folder of data to a trained adapter, phase by phase; or to what that would take."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.convert import to_reference
from msa_plugin.data.datasets import dataset_hash, load_dataset
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.errors import TrainingError
from msa_plugin.measuring.peak import peak_bytes, reset_peak
from msa_plugin.training.checkpoint import Checkpoints, writing
from msa_plugin.training.data import Corpus, corpus_of, named_sets
from msa_plugin.training.devices import Devices
from msa_plugin.training.objectives import kind_of
from msa_plugin.training.recipes import Planned, Recipe
from msa_plugin.training.settings import FREE, TrainConfig
from msa_plugin.training.trainer import Objective, Trained, Trainer, precision, recover_folder, replace_folder
from msa_plugin.types import OnProgress

_MEASURED = 3  # micro-batches, after one that warms up
_STATE_BYTES = 12  # of a parameter: itself and Adam's two moments, float32


@dataclass(frozen=True)
class Data:
    """Data sets to train on, and a hash of each."""

    corpora: tuple[Corpus, ...]
    hashes: Mapping[str, str]

    @classmethod
    def load(cls, folder: Path, sets: Sequence[str] | None, seed: int) -> Data:
        """Those that `named_sets` finds. Raises as it does."""
        loaded = [load_dataset(path, unasked=True) for path in named_sets(folder, sets).values()]
        return cls(tuple(corpus_of(d, seed) for d in loaded), {d.name: dataset_hash(d) for d in loaded})

    def described(self) -> list[dict[str, Any]]:
        """What each holds, and what was left out of it."""
        return [
            {
                "name": c.name,
                "passages": len(c.documents),
                "retrieval": sum(bool(s.wanted) for s in c.steps),
                "answers": sum(bool(s.answer) for s in c.steps),
                "notes": list(c.notes),
            }
            for c in self.corpora
        ]


class RecipeRun:
    """One recipe on one backbone and folder of data."""

    def __init__(
        self,
        recipe: Recipe,
        backbone: Backbone,
        data: Data,
        *,
        adapter: Adapter | None = None,
        steps: int | None = None,
        devices: Devices | None = None,
    ) -> None:
        """`adapter` is where training begins; `steps` replaces those of every phase.

        Raises ConfigError for settings that do not fit, and AdapterError for an adapter of another backbone.
        """
        self.recipe, self.backbone, self.data = recipe, backbone, data
        self.begun = None if adapter is None else find_adapter(backbone, adapter)
        self.phases = recipe.plan(steps)
        self.devices = devices or Devices()
        self.hash = backbone.weights_hash()

    def train(self, out: Path, on_phase: Callable[[str], OnProgress | None] | None = None) -> Trained:
        """Train all phases in `out`, going on where an earlier call was stopped; the adapter is `out`/adapter.

        Several phases have folders of their own in it. `on_phase` gives a phase's progress. Raises TrainingError for
        the folder of another run and for a disk that is too small.
        """
        out, several = out.resolve(), len(self.phases) > 1
        if several and self.devices.main:
            Checkpoints(out).claim(self.about(None), FREE)
        adapter, done = self.begun, None
        for number, phase in enumerate(self.phases, 1):
            folder = out / f"{number}-{phase.name}" if several else out
            objective = self.objective(phase, adapter)
            _check_space(folder, objective, phase.training)
            trainer = Trainer(objective, phase.training, folder, about=self.about(phase), devices=self.devices)
            done = trainer.run(on_phase(phase.name) if on_phase else None)
            if not done.finished:
                return done
            adapter = objective.adapter({})
        assert done is not None and adapter is not None
        if several and done.adapter is not None and self.devices.main:
            last = Adapter.load(done.adapter)
            with writing(out / "adapter", f"{done.adapter} is whole"):
                recover_folder(out / "adapter")
                replace_folder(out / "adapter", last.save)
        if self.backbone.weights_hash() != self.hash and self.devices.main:
            export(self.backbone, adapter, out)
        return done

    def objective(self, phase: Planned, adapter: Adapter | None) -> Objective:
        """A phase's objective, begun from `adapter`."""
        kind = kind_of(self.recipe.objective)
        return kind.build(self.backbone, phase.settings, self.data.corpora, phase.training.seed, adapter)

    def about(self, phase: Planned | None) -> dict[str, Any]:
        """What the training is made of besides its `TrainConfig`."""
        return {
            "recipe": self.recipe.name,
            "objective": self.recipe.objective,
            "phase": None if phase is None else phase.name,
            "settings": [p.settings.model_dump(mode="json") for p in self.phases if phase in (None, p)],
            **({"schedule": [p.training.model_dump(mode="json") for p in self.phases]} if phase is None else {}),
            "data": dict(self.data.hashes),
            "seed": self.recipe.seed,
            "backbone": self.hash,
            "tokenizer": self.backbone.tokenizer_hash(),
            "begun": None if self.begun is None else self.begun.hash(),
        }

    def dry_run(self) -> dict[str, Any]:
        """What training would take: samples, tokens, parameters; memory and hours from a few micro-batches run now."""
        phases = [self._measured(phase) for phase in self.phases]
        return {
            "recipe": self.recipe.name,
            "objective": self.recipe.objective,
            "data": self.data.described(),
            "phases": phases,
            "hours": round(sum(p["hours"] for p in phases), 3),
            "memory_bytes": max(p["memory_bytes"] for p in phases),
        }

    def _measured(self, phase: Planned) -> dict[str, Any]:
        reset_peak()
        if self.backbone.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        brief = kind_of(self.recipe.objective).brief(phase.settings)
        objective = self.objective(replace(phase, settings=brief), self.begun)
        numbers = [_micro_batch(objective, phase.training, batch) for batch in range(_MEASURED + 1)][1:]
        for parameter in objective.parameters.values():
            parameter.grad = None
        tokens, seconds = (sum(values) / len(numbers) for values in zip(*numbers, strict=True))
        trained = sum(p.numel() for p in objective.parameters.values())
        c = phase.training
        count = c.steps * c.accumulate * self.devices.count
        cuda = self.backbone.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else peak_bytes()
        return {
            "name": phase.name,
            "steps": c.steps,
            "micro_batches": count,
            "tokens_per_micro_batch": round(tokens),
            "tokens": round(tokens * count),
            "trained_parameters": trained,
            "tokens_per_second": round(tokens / seconds, 1),
            "hours": round(seconds * c.steps * c.accumulate / 3600, 3),
            "memory_bytes": peak + trained * (_STATE_BYTES - 4),  # moments come with the first step
            "checkpoint_bytes": trained * _STATE_BYTES,
        }


def _micro_batch(objective: Objective, config: TrainConfig, batch: int) -> tuple[int, float]:
    """Tokens and seconds of one micro-batch, forwards and backwards."""
    began = time.perf_counter()
    device = next(iter(objective.parameters.values())).device
    with precision(config, device):
        losses = objective.losses(batch)
    losses.total.backward()  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.synchronize()
    return losses.tokens, time.perf_counter() - began


def _check_space(folder: Path, objective: Objective, config: TrainConfig) -> None:
    """Raises TrainingError where checkpoints will not fit: better now than after an hour."""
    with writing(folder, "training has not begun"):
        folder.mkdir(parents=True, exist_ok=True)
    needed = _STATE_BYTES * sum(p.numel() for p in objective.parameters.values())
    kept = list((folder / "checkpoints").glob("step-*"))
    needed *= max(config.keep + 1 - len(kept), 1)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TrainingError(
            f"{folder}: checkpoints need {needed / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free; free space, "
            "keep fewer of them (keep), or choose another folder"
        )


def export(backbone: Backbone, adapter: Adapter, out: Path) -> Path:
    """Write a backbone whose own weights were trained: `out`/backbone, and `out`/reference where it is a Qwen3.

    Returns the latter, or the former for other families, whose adapter is `out`/adapter. Raises TrainingError when the
    disk refuses.
    """
    plain, reference = out / "backbone", out / "reference"
    with writing(plain, "checkpoints stand"):
        replace_folder(plain, lambda draft: _save_backbone(backbone, draft))
        if backbone.spec.family != "qwen3":
            return plain
        replace_folder(reference, lambda draft: to_reference(plain, adapter, draft))
    return reference


def _save_backbone(backbone: Backbone, folder: Path) -> None:
    backbone.model.save_pretrained(folder)
    if backbone.tokenizer is not None:
        backbone.tokenizer.save_pretrained(folder)
