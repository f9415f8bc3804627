"""Clusters of shards in this process, and one process with the same documents to compare with."""

import pytest
import torch
from local import LocalActors

from msa_plugin.cluster import opening
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter


@pytest.fixture
def one_thread():
    """Shards here have a thread each; what they are compared with has as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def local(monkeypatch, one_thread):
    """Clusters opened from now on have their shards in this process."""
    monkeypatch.setattr(opening, "RayActors", LocalActors)
    monkeypatch.setattr(opening, "load_ray", lambda: None)


@pytest.fixture
def open_cluster(tmp_path, backbone, local):
    """Opens the cluster in a folder of this test, of two shards unless it is told otherwise; closed at the end."""
    opened = []

    def run(cluster=2, adapter=None, name="cluster", **settings):
        settings.setdefault("instruction", "Be brief.")
        adapter = adapter or tiny_adapter(backbone)
        memory = LatentMemory.open(tmp_path / name, model=backbone, adapter=adapter, cluster=cluster, **settings)
        opened.append(memory)
        return memory

    yield run
    for memory in opened:
        memory.close()


@pytest.fixture
def open_plain(tmp_path, backbone, one_thread):
    """Opens the same in one process."""
    opened = []

    def run(adapter=None, name="plain", **settings):
        settings.setdefault("instruction", "Be brief.")
        adapter = adapter or tiny_adapter(backbone)
        memory = LatentMemory.open(tmp_path / name, model=backbone, adapter=adapter, **settings)
        opened.append(memory)
        return memory

    yield run
    for memory in opened:
        memory.close()
