"""States kept on disk, and forwards that start from them: the same numbers as the whole forward."""

from __future__ import annotations

import errno
import time

import pytest
import torch

from msa_plugin.backbone.attention import CausalRows, Sink
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.families import decoder_layers
from msa_plugin.bench import jsonl
from msa_plugin.encoding.encoder import pad_right
from msa_plugin.errors import ConfigError, TrainingError
from msa_plugin.training import cache
from msa_plugin.training.cache import StateCache, input_states, starting_at
from tiny import FAMILIES, tiny_backbone

ROWS = [[3, 9, 27, 81, 243, 5], [7, 50, 11], list(range(20, 40))]


def padded(rows):
    ids, mask = pad_right(rows, torch.device("cpu"))
    return ids, mask, torch.arange(ids.shape[1]).expand_as(ids)


def stacked(states):
    return torch.nn.utils.rnn.pad_sequence(states, batch_first=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_from_the_middle_is_the_whole_one(family):
    backbone = tiny_backbone(family)
    ids, mask, positions = padded(ROWS)
    whole = backbone.run(CausalRows(), ids, mask, positions, logits="all")
    states = stacked(input_states(backbone, 2, ROWS))
    with starting_at(backbone, 2, states):
        part = backbone.run(CausalRows(), ids, mask, positions, logits="all")
    torch.testing.assert_close(part[mask], whole[mask])
    again = backbone.run(CausalRows(), ids, mask, positions, logits="all")
    assert torch.equal(again, whole)


def test_layers_below_do_not_run_and_sinks_see_the_rest():
    backbone, seen, ran = tiny_backbone(), [], []
    handles = [
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, layer in enumerate(decoder_layers(backbone.model))
    ]

    class Watch(Sink):
        def on_input(self, layer, hidden):
            seen.append(layer)

    ids, mask, positions = padded(ROWS)
    with starting_at(backbone, 3, torch.zeros(3, 20, backbone.spec.hidden)):
        backbone.run(CausalRows(sink=Watch()), ids, mask, positions, logits="none")
    for handle in handles:
        handle.remove()
    assert ran == [3] and seen == [3]


def test_gradients_reach_what_trains_above():
    backbone = tiny_backbone()
    weight = decoder_layers(backbone.model)[3].mlp.up_proj.weight
    ids, mask, positions = padded(ROWS)
    found = []
    for start in (0, 3):
        weight.grad = None
        states = stacked(input_states(backbone, 3, ROWS))
        if start:
            with starting_at(backbone, 3, states):
                out = backbone.forward(CausalRows(), ids, mask, positions, logits="all")
        else:
            out = backbone.forward(CausalRows(), ids, mask, positions, logits="all")
        out[mask].square().mean().backward()
        found.append(weight.grad.clone())
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(("dtype", "close"), [("float32", 0.0), ("float16", 2e-3), ("bfloat16", 2e-2)])
def test_states_survive_the_disk(tmp_path, dtype, close):
    backbone = tiny_backbone()
    plain = [input_states(backbone, 2, [row])[0] for row in ROWS]
    with StateCache(backbone, 2, tmp_path, dtype=dtype) as kept:
        first = kept.states(ROWS)
        assert kept.tokens == 29 and kept._data.stat().st_size == kept.bytes_of(29)
    for mine, row in zip(first, plain, strict=True):
        torch.testing.assert_close(mine, row, rtol=close or 1e-4, atol=close or 1e-5)


def test_what_is_kept_is_not_computed_again(tmp_path, monkeypatch):
    backbone = tiny_backbone()
    with StateCache(backbone, 2, tmp_path) as kept:
        first = kept.states([*ROWS, ROWS[0]])
    monkeypatch.setattr(cache, "input_states", lambda *_: pytest.fail("computed again"))
    with StateCache(backbone, 2, tmp_path) as kept:
        assert all(torch.equal(a, b) for a, b in zip(kept.states([*ROWS, ROWS[0]]), first, strict=True))


def test_the_key_is_text_place_layer_and_backbone(tmp_path, monkeypatch):
    computed = []
    own = cache.input_states
    monkeypatch.setattr(cache, "input_states", lambda *given: computed.append(given[1]) or own(*given))
    backbone = tiny_backbone()
    for other, layer, start in ((backbone, 2, 0), (backbone, 2, 5), (backbone, 3, 0), (tiny_backbone(seed=1), 2, 0)):
        with StateCache(other, layer, tmp_path) as kept:
            kept.states(ROWS[:1], start)
            kept.states(ROWS[:1], start)
    assert computed == [2, 2, 3, 2]


def test_two_processes_do_not_fill_one_cache(tmp_path):
    with StateCache(tiny_backbone(), 2, tmp_path), pytest.raises(TrainingError, match="another process"):
        StateCache(tiny_backbone(), 2, tmp_path)


def test_a_cache_that_was_torn_goes_on(tmp_path):
    backbone = tiny_backbone()
    with StateCache(backbone, 2, tmp_path, dtype="float32") as kept:
        kept.states(ROWS[:1])
        data, index = kept._data, kept._index
    with data.open("ab") as file:
        file.write(b"half of a state")
    with index.open("a") as file:
        file.write('{"key": "ha')
    with StateCache(backbone, 2, tmp_path, dtype="float32") as kept:
        for mine, row in zip(kept.states(ROWS), ROWS, strict=True):
            torch.testing.assert_close(mine, input_states(backbone, 2, [row])[0])
    data.write_bytes(b"")
    with StateCache(backbone, 2, tmp_path, dtype="float32") as kept, pytest.raises((TrainingError, ValueError)):
        kept.states(ROWS)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    with StateCache(tiny_backbone(), 2, tmp_path) as kept:
        kept.states(ROWS[:1])
        monkeypatch.setattr(jsonl, "append", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(TrainingError, match=r"No space left.*states of 6 tokens are kept"):
            kept.states(ROWS)
        monkeypatch.undo()
        assert len(kept.states(ROWS)) == 3


def test_layers_that_are_not_there(tmp_path):
    backbone = tiny_backbone()
    for layer in (0, 4):
        with pytest.raises(ConfigError):
            StateCache(backbone, layer, tmp_path)
        with pytest.raises(ConfigError), starting_at(backbone, layer, torch.zeros(1)):
            pass


@pytest.mark.slow
def test_on_the_default_backbone(real_backbone, tmp_path, capsys):
    backbone, layer = Backbone.load(dtype="float32"), 15  # bfloat16, where that is fast, is less exact
    rows = [backbone.tokenize(f"Passage {i}. " + "A lighthouse stands on the cliff and warns the ships. " * 12)
            for i in range(8)]  # fmt: skip
    ids, mask, positions = padded(rows)
    with StateCache(backbone, layer, tmp_path, dtype="float32") as kept:
        states = stacked(kept.states(rows))

    def whole():
        return backbone.run(CausalRows(), ids, mask, positions, logits="none")

    def half():
        with starting_at(backbone, layer, states):
            backbone.run(CausalRows(), ids, mask, positions, logits="none")

    taken = {}
    for name, call in (("whole", whole), ("half", half)) * 2:
        began = time.perf_counter()
        call()
        taken[name] = time.perf_counter() - began
    tokens = int(mask.sum())
    with capsys.disabled():
        print(f"\n{tokens} tokens: {tokens / taken['whole']:.0f}/s whole, {tokens / taken['half']:.0f}/s from {layer}")  # noqa: T201
    expected = backbone.run(CausalRows(), ids[:1], mask[:1], positions[:1])
    with starting_at(backbone, layer, states[:1]):
        found = backbone.run(CausalRows(), ids[:1], mask[:1], positions[:1])
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
