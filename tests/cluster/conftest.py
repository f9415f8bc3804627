"""Clusters of shards in this process, and one process with the same documents to compare with."""

from contextlib import ExitStack

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
def open_plain(tmp_path, backbone, one_thread):
    """Opens a memory in a folder of this test, in one process; closed at the end."""
    with ExitStack() as opened:

        def run(adapter=None, name="plain", **settings):
            settings = {"instruction": "Be brief.", "adapter": adapter or tiny_adapter(backbone), **settings}
            return opened.enter_context(LatentMemory.open(tmp_path / name, model=backbone, **settings))

        yield run


@pytest.fixture
def open_cluster(open_plain, local):
    """Opens a cluster likewise, of two shards unless it is told otherwise."""
    return lambda cluster=2, adapter=None, name="cluster", **settings: open_plain(
        adapter, name, cluster=cluster, **settings
    )
