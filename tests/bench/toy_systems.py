"""Stand-ins for the systems of the registry beside memories: one that counts words, one that refuses."""

from __future__ import annotations

import time
from dataclasses import replace

import fakes

from msa_plugin.bench import systems
from msa_plugin.bench.base import Cost
from msa_plugin.errors import ConfigError, MissingExtraError


class Words(fakes.Words):
    """Passages that share most words with the question, in `hops` rounds that all find the same."""

    def __init__(self, workspace, name="words", hops=1):
        super().__init__(name, workspace, [], {})
        self.hops = hops

    def prepare(self):
        return Cost(0.1, 100 * len(self.workspace.dataset.documents), 1000, 2000)

    def find(self, questions, k):
        began = time.perf_counter()
        found = super().find(questions, k)
        seconds = {"search": time.perf_counter() - began}
        return [replace(one, seconds=seconds, rounds=(seconds,) * self.hops) for one in found]


def create(name, workspace, options=None):
    """Like the registry's."""
    if name.startswith("msa"):
        return systems.create(name, workspace, options)
    if name in ("words", "iterative:words"):
        return Words(workspace, name, options.rounds if name.startswith("iterative") else 1)
    if name == "absent":
        raise MissingExtraError('needs a package: pip install "msa-plugin[bench]"')
    raise ConfigError(f"unknown system {name!r}")
