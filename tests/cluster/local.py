"""Shards as objects in this process instead of Ray's: quick to start, and lost whenever a test wants it."""

from __future__ import annotations

import copy

from msa_plugin.cluster.actors import Lost
from msa_plugin.cluster.shard import Shard
from msa_plugin.errors import MSAError


class LocalActor:
    def __init__(self, number, spec):
        self.number, self.shard, self.dead = number, Shard(spec), False


class LocalActors:
    """Stands in for `RayActors`. `before` and `after` are called around every call and may end the actor."""

    latest: LocalActors

    def __init__(self, config):
        LocalActors.latest = self
        self.config = config
        self.calls = []
        self.starts = []
        self.refuse_starts = 0
        nothing = lambda actor, method: None  # noqa: E731
        self.before, self.after = nothing, nothing

    def check_room(self, shards):
        pass

    def device(self, shards):
        return "cpu"

    def start(self, number, spec):
        self.starts.append(number)
        actor = LocalActor(number, spec)
        if self.refuse_starts and len(self.starts) > self.refuse_starts:
            actor.dead = True
        return actor

    def call(self, actor, method, arguments):
        self.calls.append((actor.number, method))
        self.before(actor, method)
        if actor.dead:
            return Lost("it died before")
        travelled = arguments if method == "store" or _has_function(arguments) else _travelled(arguments)
        try:
            answer = _travelled(getattr(actor.shard, method)(*travelled))
        except (MSAError, Lost) as error:
            answer = error
        self.after(actor, method)
        return Lost("it died after") if actor.dead else answer

    def result(self, reply, seconds):
        if isinstance(reply, (MSAError, Lost)):
            raise reply
        return reply

    def stop(self, actor):
        actor.dead = True
        bank = getattr(actor.shard, "bank", None)
        if bank is not None:
            bank.close()

    def put(self, thing):
        return lambda: thing

    def lose(self, number, method, *, when="before", times=1):
        """End shard `number` at its next calls of `method`: before they are made, or when they are done."""
        left = [times]

        def crash(actor, called):
            if left[0] and (actor.number, called) == (number, method):
                left[0] -= 1
                self.stop(actor)

        setattr(self, when, crash)


def _travelled(thing):
    return copy.deepcopy(thing)


def _has_function(arguments):
    return any(callable(getattr(a, "where", None)) for a in arguments)
