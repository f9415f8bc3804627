"""Stand-ins for the systems of the registry beside memories: one that counts words, one that refuses."""

from __future__ import annotations

import time

from msa_plugin.bench import systems
from msa_plugin.bench.base import Cost, Found
from msa_plugin.bench.result import Scored
from msa_plugin.errors import ConfigError, MissingExtraError


class Words:
    """Passages that share most words with the question."""

    def __init__(self, workspace, name="words", hops=1):
        self.workspace, self.name, self.hops = workspace, name, hops

    def prepare(self):
        self.bags = {d.id: set(d.text.lower().split()) for d in self.workspace.dataset.documents}
        return Cost(0.1, 100 * len(self.bags), 1000, 2000)

    def find(self, questions, k):
        return [self._found(q, k) for q in questions]

    def _found(self, question, k):
        start = time.perf_counter()
        words = set(question.lower().split())
        ranked = sorted(self.bags, key=lambda i: (-len(words & self.bags[i]), i))[:k]
        ranking = tuple(Scored(i, float(len(words & self.bags[i]))) for i in ranked)
        queries = tuple(" ".join([question, *ranked[:n]]) for n in range(self.hops))
        seconds = {"search": time.perf_counter() - start}
        return Found(ranking, seconds, queries, (seconds,) * self.hops)

    def close(self):
        self.bags = {}


def create(name, workspace, options=None):
    """Like the registry's."""
    if name.startswith("msa"):
        return systems.create(name, workspace, options)
    if name in ("words", "iterative:words"):
        return Words(workspace, name, options.rounds if name.startswith("iterative") else 1)
    if name == "absent":
        raise MissingExtraError('needs a package: pip install "msa-plugin[bench]"')
    raise ConfigError(f"unknown system {name!r}")
