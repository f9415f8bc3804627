"""The same on real Ray actors: two processes, one of which is killed."""

import os

import pytest

from facade import about, topics, use_beside, use_prefilter
from msa_plugin.cluster.manifest import home
from msa_plugin.config import BesideConfig
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter, tiny_backbone

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "msa-plugin[distributed]"')
pytestmark = pytest.mark.slow
TOPIC = next(t["id"] for t in topics() if home("default", t["id"], 2) == 1)
SETTINGS = {"instruction": "Be brief."}
PATIENT = {"shards": 2, "start_timeout": 600, "timeout": 600}
CORPUS = topics() + [{**t, "id": f"{t['id']}-again"} for t in topics()]  # everything ties with its copy


def start_ray(attempts=4):
    """A small Ray on this machine; it gives itself half a minute, which can be too little on a busy one."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - it is 15 else, and a busy machine hardly runs them
    small = {"object_store_memory": 100 << 20, "include_dashboard": False, "configure_logging": False}
    try:
        ray.init(address="local", num_cpus=2, log_to_driver=False, **small)
    except Exception as error:
        ray.shutdown()
        if attempts < 2 or "timed out during startup" not in str(error):
            raise
        start_ray(attempts - 1)


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, backbone):
    """Two shards in processes of their own, on a Ray that runs already or is started for this module."""
    started = "RAY_ADDRESS" not in os.environ
    if started:
        start_ray()
    folder = tmp_path_factory.mktemp("cluster") / "bank"
    opened = LatentMemory.open(folder, model=backbone, adapter=tiny_adapter(backbone), cluster=PATIENT, **SETTINGS)
    opened.add(CORPUS)
    yield opened
    opened.close()
    if started:
        ray.shutdown()


@pytest.fixture(scope="module")
def plain(tmp_path_factory, backbone):
    with LatentMemory.open(
        tmp_path_factory.mktemp("plain") / "bank", model=backbone, adapter=tiny_adapter(backbone), **SETTINGS
    ) as memory:
        memory.add(CORPUS)
        yield memory


def kill(memory, shard):
    ray.kill(memory.engine.bank.shards._running[shard])


def same(hits, others):
    """Products may differ in their last digit where this process has another number of threads than a shard."""
    assert [(h.id, h.ordinal, h.text) for h in hits] == [(h.id, h.ordinal, h.text) for h in others]
    assert [h.score for h in hits] == pytest.approx([h.score for h in others], abs=1e-5)
    for mine, theirs in zip(hits, others, strict=True):
        assert mine.layer_scores == pytest.approx(theirs.layer_scores, abs=1e-5)


def test_two_processes_answer_as_one(cluster, plain):
    for question in (about("violin"), about("glacier")):
        same(cluster.retrieve(question, 16), plain.retrieve(question, 16))
    even = {"filter": {"even": True}}
    same(cluster.retrieve(about("violin"), 5, **even), plain.retrieve(about("violin"), 5, **even))
    odd = {"filter": lambda metadata: not metadata["even"]}  # a function travels too
    same(cluster.retrieve(about("violin"), 5, **odd), plain.retrieve(about("violin"), 5, **odd))
    mine, theirs = (m.ask(about("violin"), max_new_tokens=3) for m in (cluster, plain))
    assert mine.text == theirs.text and [s.id for s in mine.sources] == [s.id for s in theirs.sources]
    assert list(cluster.ids()) == list(plain.ids()) and cluster.stats().tokens == plain.stats().tokens


def test_words_and_indexes_beside_keys(cluster, plain, tmp_path):
    for memory, folder in ((cluster, tmp_path / "cluster"), (plain, tmp_path / "plain")):
        use_beside(memory, BesideConfig(lexical=1.0))
        use_prefilter(memory, "coarse:all@candidates=1000", folder, memory.engine.bank.select("default"))
    try:
        for question in (about("violin"), "a text on nothing but a glacier"):
            same(cluster.retrieve(question, 16), plain.retrieve(question, 16))
        saved = {path.parent.name for path in (tmp_path / "cluster").rglob("prefilter-*")}
        assert saved == {"shard-0000", "shard-0001"}
        kill(cluster, 1)
        same(cluster.retrieve(about(TOPIC), 16), plain.retrieve(about(TOPIC), 16))
    finally:
        for memory in (cluster, plain):
            use_beside(memory, BesideConfig())
            use_prefilter(memory, None, tmp_path, memory.engine.bank.select("default"))


def test_a_filter_that_cannot_travel_is_refused(cluster):
    from threading import Lock

    from msa_plugin.errors import InvalidQueryError

    lock = Lock()
    with pytest.raises(InvalidQueryError, match="cannot be sent"):
        cluster.retrieve("a question", filter=lambda metadata: lock.locked())


def test_a_killed_process_is_started_again_and_loses_nothing(cluster, plain):
    kill(cluster, 1)
    same(cluster.retrieve(about(TOPIC), 16), plain.retrieve(about(TOPIC), 16))
    kill(cluster, 0)
    report = cluster.add([*CORPUS, "one text more", "and another"])
    assert len(report.added) == 2 and len(report.unchanged) == len(CORPUS)
    cluster.delete(report.added)
    assert cluster.verify().ok and list(cluster.ids()) == list(plain.ids())


def test_errors_of_a_shard_arrive_as_they_are(cluster):
    from msa_plugin.errors import InvalidQueryError

    def broken(metadata):
        return metadata["nothing"]

    with pytest.raises(InvalidQueryError, match="the filter function raised KeyError"):
        cluster.retrieve("a question", filter=broken)
