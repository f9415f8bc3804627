"""Opening a bank that is split over shards: check the folder, start the shards, put an engine in front of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.disk import check_writable, disk_errors, make_folder
from msa_plugin.bank.lock import WriterLock
from msa_plugin.cluster.actors import RayActors, load_ray
from msa_plugin.cluster.bank import ClusterBank
from msa_plugin.cluster.manifest import Manifest, check_cluster
from msa_plugin.cluster.search import ClusterSearch
from msa_plugin.cluster.shard import ShardSpec
from msa_plugin.cluster.shards import Shards
from msa_plugin.cluster.shipping import Shipped
from msa_plugin.config import ClusterConfig, MemoryConfig
from msa_plugin.engine.engine import Engine
from msa_plugin.engine.setup import fingerprint
from msa_plugin.errors import BankNotFoundError, ClusterError
from msa_plugin.types import Fingerprint


def ask_for_cluster(given: ClusterConfig | Mapping[str, Any] | int) -> ClusterConfig:
    """The settings, once Ray is known to be there. Raises ConfigError and MissingExtraError."""
    settings = ClusterConfig.of(given)
    load_ray()
    return settings


def open_cluster(
    path: Path,
    model: str | Backbone | None,
    backbone: Backbone,
    adapter: Adapter,
    config: MemoryConfig,
    cluster: ClusterConfig,
    *,
    read_only: bool,
    snapshot: str | None,
) -> tuple[Engine, ClusterBank]:
    """The cluster in folder `path`, made where there is none and it is not only to be read.

    `model` is what shards load to encode, `backbone` the same in this process, for questions and answers.
    Raises ClusterError for a plain bank, another number of shards or a Ray that cannot be used, and the errors of
    `MemoryBank.open`.
    """
    made_with = fingerprint(backbone, adapter, config)
    read_only = read_only or snapshot is not None
    path = path.resolve()
    if isinstance(model, str) and (local := Path(model).expanduser()).exists():
        model = str(local.resolve())  # shards load it later, from wherever they run
    manifest = _manifest(path, made_with, cluster.shards, read_only, config.lock_timeout)
    actors = RayActors(cluster)
    actors.check_room(manifest.shards)
    spec = ShardSpec(
        path=path,
        fingerprint=made_with,
        routing=adapter.config.routing,
        config=config,
        create=not manifest.ready and not read_only,
        read_only=read_only,
        snapshot=snapshot,
        device=actors.device(manifest.shards),
        threads=max(1, cluster.cpus),
    )
    shards = Shards(actors, spec, manifest.shards, cluster)
    load = partial(Shipped.pack, model, adapter, config)
    bank = ClusterBank(path, manifest, shards, load, read_only=read_only, lock_timeout=config.lock_timeout)
    try:
        if spec.create:
            bank.made()
        return Engine(backbone, adapter, bank, config, ClusterSearch(bank)), bank
    except BaseException:
        bank.close()
        raise


def _manifest(path: Path, made_with: Fingerprint, shards: int | None, read_only: bool, patience: float) -> Manifest:
    """What the folder holds, or a new cluster in it."""
    check_cluster(path)
    manifest = Manifest.read(path)
    if manifest is None:
        if read_only:
            raise BankNotFoundError(f"{path} holds no cluster; check the path, or open it for writing to make one")
        if shards is None:
            raise ClusterError(f"{path} holds no cluster yet; say how many shards it is to have, as in cluster=2")
        with disk_errors(path):
            make_folder(path)
            check_writable(path)
        with WriterLock(path, patience).hold():
            check_cluster(path)
            manifest = Manifest.read(path) or Manifest(shards, made_with).write(path)
    manifest.check(path, shards, made_with)
    return manifest
