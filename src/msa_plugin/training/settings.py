"""How training goes, whatever it minimises: steps, learning rates, precision, and how often it is saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field, model_validator

from msa_plugin.config import Settings
from msa_plugin.errors import ConfigError

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["auto", "float32", "bf16"]
# What may be another at resume: it changes nothing that is learnt.
FREE = frozenset({"checkpoint_every", "evaluate_every", "keep"})


class TrainConfig(Settings):
    """AdamW for `steps` steps (arXiv 1711.05101), each over `accumulate` micro-batches on every device.

    The learning rate rises to `lr` over `warmup` steps and then follows `schedule` down to `floor` times `lr`;
    `factors` multiply it for parameters whose names begin with a prefix (the longest that fits counts). Gradients are
    scaled to a norm of `clip` at most (None: as they are). Decay is for matrices only. `precision` bf16 is autocast,
    auto that where the device is fast at it and float32 elsewhere.
    Every `checkpoint_every` steps a checkpoint is written, of which the last `keep` stay; every `evaluate_every`
    (None: at the end alone) the objective is evaluated, and the adapter with the best `best` is kept: a held-out
    figure that is to be high, or, with a minus before its name, low.
    """

    steps: int = Field(gt=0)
    lr: float = Field(gt=0)
    accumulate: int = Field(default=1, gt=0)
    factors: Mapping[str, float] = Field(default_factory=dict)
    warmup: int = Field(default=0, ge=0)
    schedule: Schedule = "constant"
    floor: float = Field(default=0.0, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float | None = Field(default=1.0, gt=0)
    precision: Precision = "float32"
    seed: int = 0
    checkpoint_every: int = Field(default=50, gt=0)
    evaluate_every: int | None = Field(default=None, gt=0)
    keep: int = Field(default=2, gt=0)
    best: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must be at least 0 and below 1")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup ({self.warmup}) must be shorter than the {self.steps} steps")
        if any(factor <= 0 for factor in self.factors.values()):
            raise ValueError("factors must be positive; leave a parameter out of the objective to freeze it")
        return self

    def rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 1, before factors."""
        if step <= self.warmup:
            return self.lr * step / self.warmup
        done = (step - 1 - self.warmup) / max(self.steps - 1 - self.warmup, 1)
        if self.schedule == "constant":
            return self.lr
        shape = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.lr * (self.floor + (1 - self.floor) * shape)

    def factor(self, name: str) -> float:
        """What multiplies the learning rate of the parameter `name`."""
        fitting = [prefix for prefix in self.factors if name.startswith(prefix)]
        return self.factors[max(fitting, key=len)] if fitting else 1.0

    def check_names(self, names: Iterable[str]) -> None:
        """Raises ConfigError for a prefix that no parameter's name begins with: a mistyped one would train wrongly."""
        known = list(names)
        for prefix in self.factors:
            if not any(name.startswith(prefix) for name in known):
                raise ConfigError(f"factors: no parameter is called {prefix}...; there are {', '.join(known[:8])}")

    def better(self, found: Mapping[str, float], before: float | None) -> float | None:
        """The value of `best` in `found` if it is better than `before`, else None.

        Raises ConfigError when the objective measures no such figure.
        """
        if self.best is None or not found:
            return None
        name = self.best.removeprefix("-")
        if name not in found:
            raise ConfigError(f"best: nothing measures {name!r}; there are {', '.join(found)}")
        sign = -1 if self.best.startswith("-") else 1
        return found[name] if before is None or sign * found[name] > sign * before else None
