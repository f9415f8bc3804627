"""Global memory encoding against its definition, written out slowly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_plugin.backbone.attention import ActivationRecorder, CausalRows
from msa_plugin.backbone.positions import WindowLayout
from msa_plugin.config import ContentConfig
from msa_plugin.encoding.encoder import Encoder, plan_batches
from msa_plugin.types import Document
from tiny import tiny_adapter, tiny_backbone

EVERYTHING = ContentConfig(layers=(0, 1, 2, 3), pooling=3)


class _States(ActivationRecorder):
    def __init__(self):
        self.inputs = {}
        self.kv = {}

    def on_input(self, layer, hidden):
        self.inputs[layer] = hidden[0]

    def on_kv(self, layer, keys, values):
        self.kv[layer] = (keys[0].transpose(0, 1), values[0].transpose(0, 1))


def _states(backbone, ids):
    recorder, row = _States(), torch.tensor([ids])
    positions = torch.arange(len(ids))[None]
    backbone.run(CausalRows(recorder=recorder), row, torch.ones_like(row).bool(), positions, logits="none")
    return recorder


def _chunks(count, size):
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("joint", [False, True])
def test_keys_and_content_are_chunk_means(backbone, weighted, joint):
    adapter = tiny_adapter(backbone, token_weighted=weighted, joint=joint)
    router = adapter.router
    windows = [list(range(3, 3 + n)) for n in (1, 8, 9, 23, 16)]
    encoder = Encoder(backbone, router, EVERYTHING, batch_tokens=40, keys_dtype=torch.float32)
    for ids, latents in zip(windows, encoder.encode_windows(windows), strict=True):
        states = _states(backbone, ids)
        weights = router.token_weights[torch.tensor(ids)] if weighted else torch.ones(len(ids))
        expected = []
        for part in _chunks(len(ids), 8):
            parts = []
            for layer in router.config.layers:
                w = weights[part, None]
                pooled = (states.inputs[layer][part] * w).sum(0) / w.sum()
                parts.append(router.layers[layer].k_weight @ pooled)
            if joint:
                expected.append(torch.nn.functional.normalize(sum(parts), dim=0))
            else:
                expected.append(torch.cat([torch.nn.functional.normalize(p, dim=0) for p in parts]))
        assert (latents.keys["shared"] - torch.stack(expected)).abs().max() < 1e-4
        for layer in EVERYTHING.layers:
            keys, values = states.kv[layer]
            means = [torch.stack([keys[p].mean(0), values[p].mean(0)]) for p in _chunks(len(ids), 3)]
            assert (latents.content[layer] - torch.stack(means)).abs().max() < 1e-4


def test_documents_keep_their_order_and_count_their_tokens(backbone, adapter):
    texts = ["a" * n for n in (50, 3, 17, 400, 1, 80)]
    encoder = Encoder(backbone, adapter.router, None, prefix=[1], window=64, batch_tokens=128)
    encoded = list(encoder.encode(Document(str(i), t) for i, t in enumerate(texts)))
    assert [e.document.text for e in encoded] == texts
    assert [e.tokens for e in encoded] == [50, 3, 17, 400, 1, 80]
    # 63 text tokens and the prefix fill a window of 64: 8 chunks of 8.
    assert encoded[3].keys["shared"].shape[0] == 6 * 8 + -(-(400 - 6 * 63 + 1) // 8)


def test_windows_of_a_long_document_are_independent(backbone, adapter):
    encoder = Encoder(backbone, adapter.router, EVERYTHING, prefix=[1], window=32, keys_dtype=torch.float32)
    first, second = "x" * 31, "y" * 20
    [whole] = encoder.encode([Document("w", first + second)])
    one, two = encoder.encode([Document("1", first), Document("2", second)])
    assert torch.allclose(whole.keys["shared"], torch.cat([one.keys["shared"], two.keys["shared"]]), atol=1e-5)
    for layer, content in whole.content.items():
        assert torch.allclose(content, torch.cat([one.content[layer], two.content[layer]]), atol=1e-5)


def test_a_stream_is_read_ahead_only_so_far(backbone, adapter):
    taken = 0

    def stream():
        nonlocal taken
        for index in range(1000):
            taken += 1
            yield Document(str(index), "z" * 40)

    encoder = Encoder(backbone, adapter.router, None, window=64, batch_tokens=64)
    next(iter(encoder.encode(stream())))
    assert taken <= 16 * 64 // 40 + 1


def test_less_is_read_ahead_where_latents_are_large(backbone, adapter):
    everything = ContentConfig(layers=(0, 1, 2, 3), pooling=1)
    small = Encoder(backbone, adapter.router, None, batch_tokens=100_000)
    large = Encoder(backbone, adapter.router, everything, batch_tokens=100_000)
    assert small.lookahead == 1_600_000
    # 4 layers x K and V x 2 heads x 16 numbers x 4 bytes are 1 KiB a token, and 128 MiB may wait.
    assert 120_000 < large.lookahead < 131_072


def test_stored_tensors_do_not_hold_on_to_their_batch(backbone, adapter):
    encoder = Encoder(backbone, adapter.router, EVERYTHING, keys_dtype=torch.float16)
    [latents] = encoder.encode_windows([[5, 6, 7]])
    assert latents.keys["shared"].dtype == torch.float16
    assert all(t.device.type == "cpu" for t in [*latents.keys.values(), *latents.content.values()])


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 400))
def test_batches_hold_every_window_once_and_respect_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@settings(max_examples=60)
@given(st.integers(2, 40), st.integers(0, 1), st.integers(1, 9), st.integers(0, 200))
def test_layout_finds_the_chunk_of_every_token(window, prefix, pooling, token):
    layout = WindowLayout(window, prefix)
    chunk = layout.chunk_of_token(token, pooling)
    first = layout.token_of_chunk(chunk, pooling)
    assert first <= token < first + pooling
    assert prefix <= layout.position(token) < window


def test_families_with_sliding_windows_encode_padded_batches_alike():
    backbone = tiny_backbone("mistral-sliding")
    encoder = Encoder(backbone, tiny_adapter(backbone).router, EVERYTHING, keys_dtype=torch.float32)
    windows = [list(range(3, 40)), list(range(60, 70))]
    together = encoder.encode_windows(windows)
    for ids, latents in zip(windows, together, strict=True):
        [alone] = encoder.encode_windows([ids])
        for layer in EVERYTHING.layers:
            assert torch.allclose(alone.content[layer], latents.content[layer], atol=1e-5)
