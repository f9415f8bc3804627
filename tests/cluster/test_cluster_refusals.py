"""What cannot work is refused in the cluster's own words."""

import shutil
import sys

import pytest
from local import LocalActors

from facade import topics
from msa_plugin import errors
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.cluster.manifest import shard_folder
from msa_plugin.config import ClusterConfig
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter


def test_the_extra_is_named(tmp_path, backbone, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(errors.MissingExtraError, match=r"msa-plugin\[distributed\]"):
        LatentMemory.open(tmp_path, model=backbone, adapter=tiny_adapter(backbone), cluster=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [0, -1, True, "2", 2.0, {"shards": 2, "on_lost": "hope"}, {"shard": 2}])
def test_settings_are_checked(given):
    with pytest.raises(errors.ConfigError):
        ClusterConfig.of(given)


def test_settings_come_in_three_forms():
    assert ClusterConfig.of(3) == ClusterConfig.of({"shards": 3}) == ClusterConfig.of(ClusterConfig(shards=3))


def test_the_number_of_shards_is_the_banks(open_cluster):
    with pytest.raises(errors.ClusterError, match="how many shards"):
        open_cluster(ClusterConfig())
    open_cluster().add(topics(2))
    with pytest.raises(errors.ClusterError, match="has 2 shards and 3 were asked for"):
        open_cluster(3)
    assert len(list(open_cluster(ClusterConfig()).ids())) == 2


def test_plain_banks_and_clusters_are_not_mixed_up(tmp_path, open_cluster, open_plain, backbone):
    open_plain().add("a text")
    with pytest.raises(errors.ClusterError, match="plain bank"):
        open_cluster(name="plain")
    cluster = open_cluster()
    cluster.add(topics(3))
    for read_only in (False, True):
        with pytest.raises(errors.ClusterError, match="cluster of 2 shards"):
            open_plain(name="cluster", read_only=read_only)
    with pytest.raises(errors.BankNotFoundError, match="cluster of banks"):
        MemoryBank.open(tmp_path / "cluster", cluster.engine.bank.fingerprint)
    with pytest.raises(errors.ClusterError, match="is a shard"):
        open_plain(name="cluster/shard-0000")
    assert open_plain(name="cluster/shard-0000", read_only=True).verify().ok
    assert not (tmp_path / "cluster" / "catalog.sqlite").exists()


def test_nothing_is_made_for_reading(tmp_path, open_cluster):
    with pytest.raises(errors.BankNotFoundError):
        open_cluster(read_only=True)
    assert not (tmp_path / "cluster").exists()


def test_another_model_is_refused(open_cluster, backbone):
    open_cluster().add("a text")
    with pytest.raises(errors.FingerprintMismatchError, match="adapter"):
        open_cluster(adapter=tiny_adapter(backbone, head_dim=16))


def test_a_shard_that_is_gone_from_the_disk_is_no_empty_one(tmp_path, open_cluster):
    memory = open_cluster()
    memory.add(topics())
    memory.close()
    shutil.rmtree(shard_folder(tmp_path / "cluster", 1))
    with pytest.raises(errors.BankNotFoundError, match="shard-0001"):
        open_cluster()
    assert not shard_folder(tmp_path / "cluster", 1).exists()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", errors.BankCorruptError),
        ('{"format_version": 9}', errors.BankFormatError),
        ('{"format_version": 1}', errors.BankCorruptError),
    ],
)
def test_a_damaged_manifest_is_said_to_be_one(tmp_path, open_cluster, text, error):
    open_cluster().close()
    (tmp_path / "cluster" / "cluster.json").write_text(text)
    with pytest.raises(error, match=r"cluster\.json"):
        open_cluster()


def test_damage_is_found_in_its_shard(tmp_path, open_cluster):
    memory = open_cluster()
    memory.add(topics())
    [keys, *_] = (shard_folder(tmp_path / "cluster", 1) / "segments").glob("*/keys.safetensors")
    data = bytearray(keys.read_bytes())
    data[-1] ^= 255
    keys.write_bytes(bytes(data))
    report = memory.verify()
    assert not report.ok and all(p.startswith("shard 1: ") for p in report.problems) and report.documents


def test_keys_stay_where_they_are(open_cluster):
    memory = open_cluster()
    memory.add(topics())
    with pytest.raises(errors.ConfigError, match="stay in its shards"):
        memory.engine.bank.select("default").key_blocks("shared")


def test_bad_questions_never_reach_a_shard(open_cluster):
    memory = open_cluster()
    memory.add(topics())
    del LocalActors.latest.calls[:]
    for filter in ({"$nope": 1}, 3):
        with pytest.raises(errors.InvalidQueryError):
            memory.retrieve("a question", filter=filter)
    assert not LocalActors.latest.calls
    with pytest.raises(errors.InvalidQueryError):
        memory.retrieve("a question", 0)
