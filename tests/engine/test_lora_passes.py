"""Adapters with a LoRA in the engine: who runs with the update, and that everybody else has the stock model."""

import pytest
import torch

from facade import PER_LAYER, opened, topics
from msa_plugin.backbone.attention import ForwardState
from msa_plugin.errors import FingerprintMismatchError
from msa_plugin.retrieval.ranking import shared_queries
from tiny import merged, tiny_adapter, tiny_lora, with_lora

CLOSE = {"atol": 2e-4, "rtol": 2e-3}
QUESTION = "what is said of the glacier?"


@pytest.fixture(scope="module")
def taken_up(backbone):
    """The backbone with the update merged into its weights."""
    return merged(backbone, tiny_lora(backbone.model, (0, 1, 3)))


def updated(backbone, *, answers=False, **routing):
    lora = tiny_lora(backbone.model, (0, 1, 3))
    return with_lora(tiny_adapter(backbone, read_latent=True, **routing), lora, answers=answers)


def plain_adapter(backbone, *, answers=False, **routing):
    return tiny_adapter(backbone, read_latent=True, **routing)


def filled(path, backbone, adapter, **settings):
    memory = opened(path, backbone, adapter, keys_dtype="float32", **settings)
    memory.add(topics())
    return memory


def _latents(memory, layer):
    bank, router = memory.engine.bank, memory.engine.adapter.config.routing
    ordinals = list(range(1, 9))  # ordinals count from 1
    keys = [rows for group in router.key_groups for rows in bank.key_rows(ordinals, group)]
    return [torch.cat([k.float() for k in keys]), torch.cat([c.float() for c in bank.content(ordinals, layer)])]


@pytest.mark.parametrize("routing", [{"answers": True}, PER_LAYER, {**PER_LAYER, "source": "attention"}])
def test_encoding_and_routing_are_those_of_merged_weights(tmp_path, backbone, taken_up, routing):
    with (
        filled(tmp_path / "lora", backbone, updated(backbone, **routing), reading="latent") as ours,
        filled(tmp_path / "merged", taken_up, plain_adapter(taken_up, **routing), reading="latent") as theirs,
        filled(tmp_path / "stock", backbone, plain_adapter(backbone, **routing), reading="latent") as without,
    ):
        for layer in (2, 3):
            for mine, wanted, plain in zip(*(_latents(m, layer) for m in (ours, theirs, without)), strict=True):
                torch.testing.assert_close(mine, wanted, **CLOSE)
                assert not torch.allclose(mine, plain, atol=1e-2)
        found, expected, plainly = (m.retrieve(QUESTION, k=8) for m in (ours, theirs, without))
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-3)
        assert [h.score for h in found] != pytest.approx([h.score for h in plainly], abs=1e-3)


def test_stored_content_is_that_of_the_model_that_will_read_it(tmp_path, backbone, taken_up):
    """Keys are those of updated layers; K and V of the stock ones, as long as the stock model answers."""
    with (
        filled(tmp_path / "lora", backbone, updated(backbone), reading="kv") as ours,
        filled(tmp_path / "merged", taken_up, plain_adapter(taken_up), reading="kv") as theirs,
        filled(tmp_path / "stock", backbone, plain_adapter(backbone), reading="kv") as stock,
    ):
        for layer in range(4):
            (keys, content), (wanted, other), (_, plain) = (_latents(m, layer) for m in (ours, theirs, stock))
            torch.testing.assert_close(keys, wanted, **CLOSE)
            torch.testing.assert_close(content, plain, **CLOSE)
            assert layer == 0 or not torch.allclose(content, other, atol=1e-2)
        assert torch.equal(_prefill(ours), _prefill(stock))


def test_routing_queries_are_those_of_merged_weights(backbone, taken_up):
    router, rows = tiny_adapter(backbone).router, [[5, 6, 7], [8, 9]]
    mine = shared_queries(backbone, router, rows, 64, tiny_lora(backbone.model, (0, 1, 3)))
    theirs = shared_queries(taken_up, router, rows, 64)
    torch.testing.assert_close(mine.queries, theirs.queries, **CLOSE)


def _prefill(memory):
    """Logits behind a prompt with documents that are the same whatever was routed to."""
    engine = memory.engine
    asked = engine.text.given([QUESTION], [[2, 4]], engine.bank.select("default"))
    return engine.reader.prefill([QUESTION], [a.excerpts for a in asked]).logits


def test_text_is_answered_from_by_the_stock_model(tmp_path, backbone, taken_up):
    with (
        filled(tmp_path / "off", backbone, updated(backbone), reading="text") as off,
        filled(tmp_path / "on", backbone, updated(backbone, answers=True), reading="text") as on,
        filled(tmp_path / "stock", backbone, tiny_adapter(backbone), reading="text") as stock,
        filled(tmp_path / "merged", taken_up, tiny_adapter(taken_up), reading="text") as theirs,
    ):
        assert torch.equal(_prefill(off), _prefill(stock))
        torch.testing.assert_close(_prefill(on), _prefill(theirs), **CLOSE)
        assert not torch.allclose(_prefill(on), _prefill(off), atol=1e-2)
        given = [{"max_new_tokens": 12, "documents": ["glacier", "harbour"]}] * 3
        plain, same, other = (m.ask(QUESTION, **g).text for m, g in zip((stock, off, on), given, strict=True))
        assert plain == same != other
        messages = [{"role": "user", "content": "hello"}]
        assert off.chat(messages, max_new_tokens=8).text == stock.chat(messages, max_new_tokens=8).text


def test_where_one_forward_routes_and_reads_it_is_on_to_the_end(tmp_path, backbone, taken_up):
    with (
        filled(tmp_path / "lora", backbone, updated(backbone, **PER_LAYER), reading="latent") as ours,
        filled(tmp_path / "merged", taken_up, tiny_adapter(taken_up, **PER_LAYER), reading="latent") as theirs,
    ):
        found = []
        for memory in (ours, theirs):
            engine = memory.engine
            _, prefill = engine.answerer.read_while_routing([QUESTION], engine.bank.select("default"))
            after = engine.backbone.run(
                prefill.state, torch.tensor([[9]]), torch.ones(1, 1, dtype=torch.bool), prefill.positions[:, None]
            )
            assert after is not None
            found.append((prefill.logits, after[:, -1]))
        for mine, wanted in zip(*found, strict=True):
            torch.testing.assert_close(mine, wanted, **CLOSE)


def test_a_bank_belongs_to_the_adapter_with_its_update(tmp_path, backbone):
    adapter = updated(backbone)
    filled(tmp_path, backbone, adapter, reading="text").close()
    answering = with_lora(adapter, adapter.lora, answers=True)
    opened(tmp_path, backbone, answering, keys_dtype="float32", reading="text").close()
    plain = plain_adapter(backbone)
    with pytest.raises(FingerprintMismatchError, match="adapter"):
        opened(tmp_path, backbone, plain, keys_dtype="float32")


def test_kept_content_belongs_to_who_reads_it(tmp_path, backbone):
    filled(tmp_path, backbone, updated(backbone), reading="kv").close()
    with pytest.raises(FingerprintMismatchError, match="content"):
        opened(tmp_path, backbone, updated(backbone, answers=True), keys_dtype="float32", reading="kv")


def test_the_model_is_stock_after_everything(tmp_path, backbone):
    ids = torch.tensor([[5, 6, 7]])
    mask, positions = torch.ones_like(ids, dtype=torch.bool), torch.arange(3)[None]
    before, weights = backbone.run(ForwardState(), ids, mask, positions), backbone.weights_hash()
    with filled(tmp_path, backbone, updated(backbone, answers=True, **PER_LAYER), reading="latent") as memory:
        assert memory.retrieve(QUESTION, k=2)
        memory.ask([QUESTION, "and of the harbour?"], max_new_tokens=4)
        assert memory.stats().documents == 8
    assert torch.equal(backbone.run(ForwardState(), ids, mask, positions), before)
    assert backbone.weights_hash() == weights
    assert not any(module._forward_hooks or "forward" in vars(module) for module in backbone.model.modules())
