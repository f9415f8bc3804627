"""Ray, for the cluster: the one file that imports it. Starts shards as actors, calls them, notices that one is gone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from msa_plugin.cluster.shard import Shard, ShardSpec
from msa_plugin.config import ClusterConfig
from msa_plugin.errors import ClusterError, InvalidQueryError, MissingExtraError, MSAError

_THREADS = 4  # of an actor: questions go on while documents are encoded
_starting = threading.Lock()


class Lost(Exception):
    """A shard's process is gone, or did not answer in time."""


def load_ray() -> Any:
    """The module. Raises MissingExtraError naming the extra."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError('cluster= needs Ray: pip install "msa-plugin[distributed]"') from error
    return ray


def _fetched(reference: Any) -> Any:
    """What lies in Ray's object store."""
    return load_ray().get(reference)


class RayActors:
    """Starts and calls shards as Ray actors; they end with the process that started them."""

    def __init__(self, config: ClusterConfig) -> None:
        """Join Ray, or start it. Raises MissingExtraError and ClusterError."""
        self._ray, self.config = load_ray(), config
        _connect(self._ray, config.address)

    def check_room(self, shards: int) -> None:
        """Raises ClusterError where Ray has not enough processors for that many shards: they would wait for ever."""
        has = self._ray.cluster_resources().get("CPU", 0)
        if has < shards * self.config.cpus:
            raise ClusterError(
                f"{shards} shards of {self.config.cpus} processors do not fit into the {has:g} that Ray counts; start "
                "Ray with more (--num-cpus, or ray.init(num_cpus=...)), or set cpus=0, which reserves none"
            )

    def device(self, shards: int) -> str:
        """Where keys lie: `cuda` where it was asked for, or where Ray has a GPU for each shard."""
        if self.config.device != "auto":
            return self.config.device
        return "cuda" if self._ray.cluster_resources().get("GPU", 0) >= shards else "cpu"

    def start(self, shard: int, spec: ShardSpec) -> Any:
        """A new process for a shard, whose first call is to be `open`."""
        options: dict[str, Any] = {"num_cpus": self.config.cpus, "max_concurrency": _THREADS, "max_restarts": 0}
        if spec.device == "cuda":
            options["num_gpus"] = 1
        if self.config.resource is not None:
            options["resources"] = {f"{self.config.resource}-{shard}": 1}
        return self._ray.remote(Shard).options(**options).remote(spec)

    def call(self, actor: Any, method: str, arguments: tuple[Any, ...]) -> Any:
        """Send a call; the reply is to be awaited. Raises InvalidQueryError for what cannot be sent."""
        try:
            return getattr(actor, method).remote(*arguments)
        except TypeError as error:
            raise InvalidQueryError(
                f"this cannot be sent to a shard ({error}); use a mapping as filter, or a function that needs no more "
                "than its argument"
            ) from error

    def result(self, reply: Any, seconds: float | None) -> Any:
        """What came back. Raises Lost, or the error that the shard raised."""
        try:
            return self._ray.get(reply, timeout=seconds)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MSAError):
                raise error.cause from None
            raise ClusterError(f"a shard failed: {error}") from error
        except (self._ray.exceptions.RayError, TimeoutError) as error:
            raise Lost(str(error)) from error

    def stop(self, actor: Any) -> None:
        """End a shard's process now; what it has acknowledged is on its disk."""
        self._ray.kill(actor, no_restart=True)

    def put(self, thing: Any) -> Callable[[], Any]:
        """Hand something to all shards once, who fetch it by calling what this returns."""
        return partial(_fetched, self._ray.put(thing))


def _connect(ray: Any, address: str | None) -> None:
    with _starting:
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a library sends nobody reports
        # Ray's own 15 lets a shard wait for whatever else the machine does, while a question waits for the shard.
        os.environ.setdefault("RAY_worker_niceness", "0")
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, configure_logging=False)
        except Exception as error:  # Ray raises almost anything where it cannot start
            where = f"at {address}" if address else "here"
            raise ClusterError(
                f"Ray {where} cannot be used: {error}; see docs/cluster.md for how it is started"
            ) from error
