"""Objectives by the name that recipes give them. A new one is a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.config import Settings
from msa_plugin.errors import ConfigError
from msa_plugin.training.contrastive import ContrastiveConfig, brief, contrastive_objective
from msa_plugin.training.data import Corpus
from msa_plugin.training.packed_objective import PackedConfig, PackedObjective
from msa_plugin.training.reader_objective import ReaderConfig, ReaderObjective
from msa_plugin.training.reading_objective import ReadingConfig, ReadingObjective
from msa_plugin.training.trainer import Objective

# Makes an objective of its settings and a seed; the adapter is where training begins (None: afresh). Raises ConfigError
# and TrainingError for what does not fit together.
Build = Callable[[Backbone, Any, Sequence[Corpus], int, Adapter | None], Objective]


@dataclass(frozen=True)
class Kind:
    """The settings of an objective, and how it is made of them.

    `brief` gives settings under which micro-batches cost the same and nothing long is prepared first, for estimates.
    """

    settings: type[Settings]
    build: Build
    brief: Callable[[Any], Settings] = lambda settings: settings


OBJECTIVES: Mapping[str, Kind] = {
    "contrastive": Kind(ContrastiveConfig, contrastive_objective, brief),
    "packed": Kind(PackedConfig, PackedObjective),
    "reader": Kind(ReaderConfig, ReaderObjective),
    "reading": Kind(ReadingConfig, ReadingObjective),
}


def kind_of(name: str) -> Kind:
    """Raises ConfigError for an unknown objective, naming those there are."""
    if name not in OBJECTIVES:
        raise ConfigError(f"unknown objective {name!r}; there are {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name]
