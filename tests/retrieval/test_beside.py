"""What counts beside routing keys by default: what the adapter says, unless a memory's settings say otherwise."""

from dataclasses import replace

import pytest

from facade import PER_LAYER, opened, topics
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.bench.growth import Banks
from msa_plugin.config import BesideConfig, MemoryConfig
from msa_plugin.data import sample_documents
from msa_plugin.encoding.calibration import Calibration, CalibrationConfig
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.errors import ConfigError
from tiny import tiny_adapter

QUESTION = "who keeps the violin"


@pytest.fixture(scope="module")
def adapter(backbone):
    plain = tiny_adapter(backbone)
    config = plain.config.model_copy(update={"beside": BesideConfig(lexical=0.7, titles=0.3, mentions=0.2)})
    return replace(plain, config=config)


def weights(memory):
    return tuple(one.weight if one else 0.0 for one in memory.engine.retriever.signals)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (0.7, 0.3, 0.2)),
        ({"lexical": 0}, (0.0, 0.3, 0.2)),
        ({"titles": 0.0}, (0.7, 0.0, 0.2)),
        ({"mentions": 0.0}, (0.7, 0.3, 0.0)),
        ({"lexical": 2.0, "titles": 0.1, "mentions": 1}, (2.0, 0.1, 1.0)),
    ],
)
def test_the_adapter_says_and_settings_overrule_it(tmp_path, backbone, adapter, settings, expected):
    with opened(tmp_path, backbone, adapter, **settings) as memory:
        assert weights(memory) == expected


def test_scores_are_those_of_the_weights_given_by_hand(tmp_path, backbone, adapter):
    found = []
    for name, given, settings in [
        ("a", adapter, {}),
        ("b", None, {"lexical": 0.7, "titles": 0.3, "mentions": 0.2}),
        ("c", None, {}),
    ]:
        with opened(tmp_path / name, backbone, given, **settings) as memory:
            memory.add(topics())
            found.append([(h.id, h.score) for h in memory.retrieve(QUESTION, k=8)])
    assert found[0] == found[1] != found[2], "a tiny adapter says nothing, and keys count alone"


@pytest.mark.parametrize(
    ("settings", "beside"),
    [
        ({}, {"words": 0.7, "names": 0.3, "mentions": 0.2}),
        ({"titles": 0}, {"words": 0.7, "mentions": 0.2}),
        ({"lexical": 0, "titles": 0, "mentions": 0}, {}),
    ],
)
def test_a_trace_says_what_counted(tmp_path, backbone, adapter, settings, beside):
    with opened(tmp_path, backbone, adapter, **settings) as memory:
        memory.add(topics())
        answer = memory.ask(QUESTION, max_new_tokens=1)
        assert answer.trace.beside == beside == answer.to_dict()["trace"]["beside"]
        chosen = memory.ask(QUESTION, documents=["violin"], max_new_tokens=1)
        assert chosen.trace.beside == {}, "nothing was ranked"


def test_it_is_kept_with_the_adapter_and_no_bank_depends_on_it(tmp_path, backbone, adapter):
    adapter.save(tmp_path / "new")
    tiny_adapter(backbone).save(tmp_path / "old")
    assert Adapter.load(tmp_path / "new").config.beside == BesideConfig(lexical=0.7, titles=0.3, mentions=0.2)
    unlinked = replace(adapter, config=adapter.config.model_copy(update={"beside": BesideConfig(titles=0.3)}))
    unlinked.save(tmp_path / "earlier")
    assert "mentions" not in (tmp_path / "earlier" / "adapter.json").read_text()
    assert Adapter.load(tmp_path / "earlier").config.beside == BesideConfig(titles=0.3)
    assert "beside" not in (tmp_path / "old" / "adapter.json").read_text(), "earlier packages refuse unknown fields"
    assert Adapter.load(tmp_path / "old").hash() == Adapter.load(tmp_path / "new").hash()


def test_layers_that_select_for_themselves_have_none(backbone):
    config = tiny_adapter(backbone, **PER_LAYER).config
    with pytest.raises(ConfigError, match="beside"):
        type(config)(**{**config.model_dump(), "beside": {"lexical": 1.0}})


@pytest.mark.parametrize("name", ["lexical", "titles", "mentions"])
def test_what_is_refused(tmp_path, backbone, name):
    with pytest.raises(ConfigError, match=name):
        opened(tmp_path, backbone, **{name: -1.0})
    with pytest.raises(ConfigError, match="one ranking"):
        opened(tmp_path, backbone, tiny_adapter(backbone, **PER_LAYER), **{name: 0.5})


def test_the_benchmarks_memories_have_keys_alone(tmp_path, backbone, adapter):
    banks = Banks(tmp_path, backbone, adapter, MemoryConfig(dtype="float32"))
    with banks.unfilled([]) as memory:
        assert weights(memory) == (0.0, 0.0, 0.0)
    asked = Banks(tmp_path, backbone, adapter, MemoryConfig(dtype="float32", lexical=0.2))
    with asked.unfilled([]) as memory:
        assert weights(memory) == (0.2, 0.0, 0.0)


def test_a_calibrated_adapter_counts_words_and_names(backbone):
    config = CalibrationConfig(dims=8, pooling=8, passages=40, questions=4)
    made = Calibration(backbone, config).run([f"{d.title}\n{d.text}" for d in sample_documents()], ["why?", "who?"])
    assert made.config.beside == BesideConfig(lexical=0.7, titles=0.4, mentions=0.4)


@pytest.mark.slow
def test_the_default_adapter_counts_words_and_names(real_backbone):
    assert find_adapter(real_backbone, None).config.beside == BesideConfig(lexical=0.7, titles=0.4, mentions=0.4)
