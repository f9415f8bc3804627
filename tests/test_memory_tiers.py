"""Byte budgets from the settings to `stats()`."""

import gc

import pytest

from facade import opened, topics
from msa_plugin.config import MemoryConfig, TierConfig
from msa_plugin.errors import ConfigError
from tiny import tiny_adapter


@pytest.fixture
def stored(tmp_path, backbone):
    """A folder with eight documents in four segments, and the bytes of one segment's keys."""
    with opened(tmp_path, backbone, tiny_adapter(backbone, read_latent=True), segment_documents=2) as memory:
        memory.add(topics())
        assert memory.stats().segments == 4
        sizes = [segment.keys["shared"].nbytes + 3 * 8 for segment in memory.engine.bank.segments()]
    return tmp_path, sizes


def _opened(stored, backbone, **tiers):
    return opened(stored[0], backbone, tiny_adapter(backbone, read_latent=True), tiers=tiers, segment_documents=2)


def test_the_same_documents_with_any_budget(stored, backbone):
    sizes = stored[1]
    with _opened(stored, backbone) as memory:
        plain = memory.retrieve("glacier", 8)
        assert memory.stats().tiers.device_keys == 0
        assert memory.stats().tiers.keys_streamed == sum(size - 24 for size in sizes)
    for resident in range(len(sizes) + 1):
        budget = sum(sizes[:resident])
        with _opened(stored, backbone, device_bytes=budget) as memory:
            assert memory.retrieve("glacier", 8) == plain == memory.retrieve("glacier", 8)
            stats = memory.stats().tiers
            assert (stats.device_budget, stats.device_keys) == (budget, budget)
            assert stats.keys_streamed == 2 * sum(size - 24 for size in sizes[resident:])


def test_content_is_held_and_deleted_documents_are_let_go_of(stored, backbone):
    with _opened(stored, backbone, host_bytes=10**6, device_bytes=10**6) as memory:
        assert memory.stats().tiers.host_content == 0
        first = memory.ask("glacier", max_new_tokens=3)
        held = memory.stats().tiers
        assert held.host_content == held.content_gathered > 0 == held.host_keys
        again = memory.ask("glacier", max_new_tokens=3)
        assert again.text == first.text
        assert memory.stats().tiers.host_content == held.host_content
        memory.delete([source.id for source in first.sources])
        assert memory.stats().tiers.host_content == 0


def test_compaction_lets_go_of_old_segments(stored, backbone):
    with _opened(stored, backbone, device_bytes=sum(stored[1])) as memory:
        memory.retrieve("glacier")
        assert memory.stats().tiers.device_keys == sum(stored[1])
        memory.delete("glacier")
        memory.compact()
        gc.collect()
        assert memory.stats().tiers.device_keys == 0
        assert memory.retrieve("violin", 1)[0].id == "violin"
        assert 0 < memory.stats().tiers.device_keys < sum(stored[1])


@pytest.mark.parametrize("wrong", [-1, 1.5, "2GB", True])
@pytest.mark.parametrize("name", ["device_bytes", "host_bytes"])
def test_wrong_budgets_are_refused_at_the_door(tmp_path, backbone, adapter, name, wrong):
    with pytest.raises(ConfigError, match=name):
        TierConfig(**{name: wrong})
    with pytest.raises(ConfigError, match=name):
        opened(tmp_path, backbone, adapter, tiers={name: wrong})
    assert not (tmp_path / "bank").exists()


def test_unknown_tiers_are_refused():
    with pytest.raises(ConfigError, match="disk_bytes"):
        MemoryConfig(tiers={"disk_bytes": 3})
