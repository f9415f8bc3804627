"""Averaged adapters: the mean of what each would have added, at the rank that was asked for."""

import json
from dataclasses import replace

import pytest
import torch

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.lora import Lora, Update
from msa_plugin.cli.app import app
from msa_plugin.errors import AdapterError
from msa_plugin.training.average import average
from tiny import tiny_adapter, tiny_backbone, tiny_lora, with_lora


@pytest.fixture(scope="module")
def pair():
    """Two adapters whose every weight differs."""
    backbone = tiny_backbone()
    start = tiny_adapter(backbone, token_weighted=True, document_mix=0.5, joint=True)
    first, second = (with_lora(start, tiny_lora(backbone.model, rank=rank)) for rank in (3, 2))
    layers = {i: replace(layer, q_weight=layer.q_weight + 1) for i, layer in second.router.layers.items()}
    router = type(second.router)(second.router.config, layers, second.router.token_weights * 3)
    return first, replace(second, router=router)


def product(update):
    return update.up.double() @ update.down.double()


def test_the_mean_of_weights_and_of_what_a_lora_adds(pair):
    found = average(pair, rank=5)
    assert found.lost == pytest.approx(0, abs=1e-6) and found.adapter.config.lora.rank == 5
    for where, update in found.adapter.lora.updates.items():
        expected = (product(pair[0].lora.updates[where]) + product(pair[1].lora.updates[where])) / 2
        torch.testing.assert_close(product(update), expected, atol=1e-5, rtol=1e-4)
    layer = pair[0].config.routing.layers[0]
    torch.testing.assert_close(found.adapter.router.layers[layer].q_weight, pair[0].router.layers[layer].q_weight + 0.5)
    torch.testing.assert_close(found.adapter.router.token_weights, pair[0].router.token_weights * 2)


def test_a_lower_rank_keeps_the_best_approximation_and_says_what_it_lost(pair):
    found = average(pair)
    assert found.adapter.config.lora.rank == 3
    whole = kept = 0.0
    for where, update in found.adapter.lora.updates.items():
        mean = (product(pair[0].lora.updates[where]) + product(pair[1].lora.updates[where])) / 2
        values = torch.linalg.svdvals(mean)
        torch.testing.assert_close(torch.linalg.svdvals(product(update))[:3], values[:3], atol=1e-5, rtol=1e-4)
        whole, kept = whole + float((values**2).sum()), kept + float((values[:3] ** 2).sum())
    assert 0 < found.lost == pytest.approx(1 - kept / whole, rel=1e-4)


def test_one_without_lora_counts_as_no_update(pair):
    plain = replace(pair[0], config=pair[0].config.model_copy(update={"lora": None, "format_version": 1}), lora=None)
    found = average([pair[0], plain]).adapter
    where = next(iter(found.lora.updates))
    torch.testing.assert_close(product(found.lora.updates[where]), product(pair[0].lora.updates[where]) / 2)
    assert average([plain, plain]).adapter.lora is None


def test_an_adapter_averaged_with_itself_ranks_as_it_did(pair):
    found = average([pair[0], pair[0]])
    where = next(iter(found.adapter.lora.updates))
    torch.testing.assert_close(product(found.adapter.lora.updates[where]), product(pair[0].lora.updates[where]))
    assert found.lost == pytest.approx(0, abs=1e-6)


def test_refusals_say_what_differs(pair):
    with pytest.raises(AdapterError, match="no adapter"):
        average([])
    other = replace(pair[1], config=pair[1].config.model_copy(update={"top_k": 3}))
    with pytest.raises(AdapterError, match="differ in top_k"):
        average([pair[0], other])
    loud = with_lora(pair[1], pair[1].lora, answers=True)
    with pytest.raises(AdapterError, match="answer with their LoRA"):
        average([pair[0], loud])
    small = Lora({(0, "self_attn.q_proj"): Update(torch.ones(1, 4), torch.ones(4, 1))})
    with pytest.raises(AdapterError, match="shape"):
        average([pair[0], replace(pair[0], config=pair[0].config.model_copy(update={"lora": None}), lora=small)])


def test_the_command_writes_an_adapter_and_refuses_a_folder_that_is_there(pair, tmp_path):
    from typer.testing import CliRunner

    for name, adapter in zip("ab", pair, strict=True):
        adapter.save(tmp_path / name)
    arguments = ["average", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "mean")]
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    said = json.loads(result.stdout)
    made = Adapter.load(tmp_path / "mean")
    assert said["averaged"] == 2 and made.hash() == average([Adapter.load(tmp_path / n) for n in "ab"]).adapter.hash()
    assert made.config.provenance["average_of"] == [{}, {}]
    assert CliRunner().invoke(app, arguments).exit_code != 0
