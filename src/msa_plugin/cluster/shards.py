"""Calls to all shards at once, and what becomes of them when a shard's process is gone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from msa_plugin.cluster.actors import Lost, RayActors
from msa_plugin.cluster.manifest import shard_folder
from msa_plugin.cluster.shard import ShardSpec
from msa_plugin.config import ClusterConfig
from msa_plugin.errors import MSAError, ShardLostError

_CLOSING = 10.0  # seconds
logger = logging.getLogger(__name__)
_Calls = Mapping[int, tuple[Any, ...]]


class Shards:
    """The processes of one cluster. Safe to share among threads."""

    def __init__(self, actors: RayActors, spec: ShardSpec, count: int, config: ClusterConfig) -> None:
        """Start all of them as `spec` says, each in its part of that folder. Raises what opening them raises."""
        self._launcher, self._spec, self.count, self.config = actors, spec, count, config
        self._locks = [threading.Lock() for _ in range(count)]  # of starting a shard again
        self._reviving: dict[int, threading.Thread] = {}
        self._closed = False
        self._running: list[Any] = [None] * count
        try:
            for shard in range(count):
                self._running[shard] = self._start(shard)
            self.all("open", seconds=config.start_timeout)
        except BaseException:
            self.close()
            raise
        self._spec = replace(spec, create=False)  # from now on a bank that is missing is an error, not a new one

    def _start(self, shard: int) -> Any:
        return self._launcher.start(shard, replace(self._spec, path=shard_folder(self._spec.path, shard)))

    def all(self, method: str, *arguments: Any, seconds: float | None = None) -> list[Any]:
        """The same call to every shard; their answers in order. Raises as `each`."""
        answers = self.each(method, dict.fromkeys(range(self.count), arguments), seconds)
        return [answers[shard] for shard in range(self.count)]

    def each(self, method: str, calls: _Calls, seconds: float | None = None) -> dict[int, Any]:
        """A call to each of some shards, side by side; all answer, or it raises once all have ended.

        A shard that was lost is started again and asked once more, so a call must be one that may be repeated.
        Raises ShardLostError, and the error of the first shard that raised one.
        """
        answers, lost = self._ask(method, calls, seconds)
        for shard in lost:
            self._revive(shard)
        again, still = self._ask(method, {shard: calls[shard] for shard in lost}, seconds)
        if still:
            raise ShardLostError(
                f"shards {still} were lost twice during one call ({method}); what was acknowledged is on their disks. "
                "See Ray's logs for why (memory?), then repeat the call: what is stored already costs nothing"
            )
        return answers | again

    def some(self, method: str, *arguments: Any) -> tuple[dict[int, Any], tuple[int, ...]]:
        """A question to every shard: the answers, and the shards that were missed where `on_lost` allows it."""
        calls = dict.fromkeys(range(self.count), arguments)
        if self.config.on_lost == "fail":
            return self.each(method, calls, self.config.timeout), ()
        answers, lost = self._ask(method, calls, self.config.timeout)
        for shard in lost:
            self._revive_meanwhile(shard)
        if lost:
            logger.warning("shards %s of %d did not answer; what they hold is left out", lost, self.count)
        return answers, tuple(lost)

    def put(self, thing: Any) -> Callable[[], Any]:
        """Hand something to all shards once; they fetch it when they need it."""
        return self._launcher.put(thing)

    def close(self) -> None:
        """Close all banks and end the processes; may be called twice."""
        self._closed = True
        running = [actor for actor in self._running if actor is not None]
        self._running[:] = [None] * self.count
        closing = [self._launcher.call(actor, "close", ()) for actor in running]
        for actor, reply in zip(running, closing, strict=True):
            with suppress(Lost, MSAError):  # a bank that was not closed opens as after a crash
                self._launcher.result(reply, _CLOSING)
            self._launcher.stop(actor)

    def _ask(self, method: str, calls: _Calls, seconds: float | None) -> tuple[dict[int, Any], list[int]]:
        """Answers, and shards that are lost; whatever a shard raised, once all have ended."""
        asked = [(shard, self._running[shard], arguments) for shard, arguments in calls.items()]
        replies = [(s, a, None if a is None else self._launcher.call(a, method, args)) for s, a, args in asked]
        outcomes = {shard: self._outcome(shard, actor, reply, seconds) for shard, actor, reply in replies}
        if failures := [outcome for outcome in outcomes.values() if isinstance(outcome, MSAError)]:
            raise failures[0]
        lost = [shard for shard, outcome in outcomes.items() if isinstance(outcome, Lost)]
        return {shard: outcome for shard, outcome in outcomes.items() if shard not in lost}, lost

    def _outcome(self, shard: int, actor: Any, reply: Any, seconds: float | None) -> Any:
        """An answer, or the error in its place."""
        if actor is None:
            return Lost("it is not running")
        try:
            return self._launcher.result(reply, seconds)
        except MSAError as error:
            return error
        except Lost as error:
            logger.warning("shard %d is lost: %s", shard, error)
            self._launcher.stop(actor)  # one that answers late must not write any more
            if self._running[shard] is actor:
                self._running[shard] = None
            return error

    def _revive(self, shard: int) -> None:
        """Start a shard again from its segments, unless somebody has. Raises ShardLostError."""
        with self._locks[shard]:
            if self._running[shard] is not None:
                return
            why: Exception | None = None
            for _ in range(self.config.restarts):
                if self._closed:
                    break
                actor = self._start(shard)
                try:
                    self._launcher.result(self._launcher.call(actor, "open", ()), self.config.start_timeout)
                except (Lost, MSAError) as error:
                    why = error
                    self._launcher.stop(actor)
                else:
                    self._running[shard] = actor
                    self._reviving.pop(shard, None)
                    logger.warning("shard %d was started again from its segments", shard)
                    return
            raise ShardLostError(
                f"shard {shard} is gone and did not start again in {self.config.restarts} attempts "
                f"({why or 'the memory was closed'}); what was acknowledged is in its folder. See `ray status` and "
                "Ray's logs, then repeat the call; on_lost='partial' answers from the other shards meanwhile"
            ) from why

    def _revive_meanwhile(self, shard: int) -> None:
        """Start a shard again in the background; once its attempts are used up, only a strict call tries again."""
        if shard in self._reviving:
            return

        def run() -> None:
            try:
                self._revive(shard)
            except ShardLostError as error:
                logger.error("%s", error)

        thread = threading.Thread(target=run, name=f"shard-{shard}", daemon=True)
        self._reviving[shard] = thread
        thread.start()
