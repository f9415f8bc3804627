"""Prefills that go on from earlier ones: equal to full ones, in any family, phase and padding, and cheaper."""

from contextlib import contextmanager

import pytest
import torch

import reference_checkpoint as reference
from facade import PER_LAYER, opened, topics
from msa_plugin.answering.generative.scheduler import Scheduler
from msa_plugin.answering.per_layer import LayerRow
from msa_plugin.answering.resume import Earlier, in_common, kept_rows
from msa_plugin.backbone.batching import joined
from msa_plugin.backbone.families import decoder_layers
from msa_plugin.memory import LatentMemory
from msa_plugin.retrieval.assembly import BankSource
from tiny import tiny_adapter, tiny_backbone, tiny_lora, with_lora

CLOSE = {"atol": 2e-4, "rtol": 2e-3}
TOP_K = 3


class Rows:
    """Rows that grow round by round, the pass that decodes them, and what their last prefill left."""

    def __init__(self, memory):
        self.layers = memory.engine.retriever.layers
        self.head = memory.engine.reader.head_with(self.layers.lora)
        self.selection = memory._bank.select("default", None)
        self.earlier = {}

    def both(self, rows):
        """One prefill that goes on from what was, and one that does not; the former decodes three tokens."""
        given = [LayerRow(ids, [n % 3 != 1 for n in range(len(ids))]) for ids in rows.values()]
        before = [self.earlier.get(name) for name in rows]
        whole = self.layers.run(given, self.head, TOP_K, self.selection, answering=True)
        ours = self.layers.resume(given, self.head, TOP_K, self.selection, before)
        if ours.hidden is not None:
            kept = kept_rows(list(rows.values()), ours.hidden)
            decoding = joined([(ours.state, list(range(len(rows))))])
            for row, (name, one) in enumerate(zip(rows, kept, strict=True)):
                self.earlier[name] = Earlier(one, decoding, row)
            self.decode(decoding, ours.positions)
        return ours, whole

    def decode(self, state, positions):
        for step in range(3):
            ids = torch.randint(3, 300, (len(positions), 1))
            alive = torch.ones_like(ids, dtype=torch.bool)
            alive[0] = step < 1  # the first row waits for the others
            self.layers.backbone.run(state, ids, alive, positions[:, None] + step)


def words(length, seed):
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def compare(ours, whole):
    assert ours.logits is not None and whole.logits is not None
    torch.testing.assert_close(ours.logits, whole.logits, **CLOSE)
    assert torch.equal(ours.positions, whole.positions)
    for layer, routed in whole.source.routed.items():
        assert [o.tolist() for o in ours.source.routed[layer].ordinals] == [o.tolist() for o in routed.ordinals]
    assert whole.state.row_mask is not None and torch.equal(ours.state.row_mask, whole.state.row_mask)
    assert sorted(ours.state.caches) == sorted(whole.state.caches)
    for layer, cache in whole.state.caches.items():
        padding = ~whole.state.row_mask
        for mine, wanted in zip(ours.state.caches[layer].current, cache.current, strict=True):
            real = torch.cat([torch.ones(len(padding), wanted.shape[2] - padding.shape[1]).bool(), ~padding], dim=1)
            mine, wanted = (t.transpose(1, 2)[real] for t in (mine, wanted))
            torch.testing.assert_close(mine, wanted, **CLOSE)


@contextmanager
def memory_on(path, backbone, layers=(2, 3), lora=False):
    adapter = tiny_adapter(backbone, read_latent=True, **{**PER_LAYER, "layers": layers})
    if lora:
        adapter = with_lora(adapter, tiny_lora(backbone.model, (0, 1, 3)))
    with opened(path, backbone, adapter, reading="latent", keys_dtype="float32") as memory:
        memory.add(topics())
        yield memory


def rounds(memory, check=compare):
    """Four rounds of rows of all lengths: alone, joined by newcomers, left by some, and one that begins anew."""
    rows = Rows(memory)
    a, b, c = words(21, 1), words(9, 2), words(30, 3)
    check(*rows.both({"a": a}))
    a = a + words(17, 4)
    check(*rows.both({"a": a, "b": b}))
    a, b = a + words(2, 5), b + words(40, 6)
    check(*rows.both({"b": b, "a": a, "c": c}))
    c, b = c + words(1, 7), b[:12] + words(20, 8)  # b's decoding was read back differently from what was prefilled
    check(*rows.both({"c": c, "b": b}))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral-sliding", "gemma", "gemma2", "gemma3"])
def test_equal_to_a_full_prefill_in_every_family(tmp_path, family):
    with memory_on(tmp_path, tiny_backbone(family)) as memory:
        rounds(memory)


@pytest.mark.parametrize(("layers", "depth"), [((0, 2), 0), ((1,), 1), ((3,), 3)])
def test_wherever_the_first_router_layer_is(tmp_path, backbone, layers, depth):
    with memory_on(tmp_path, backbone, layers) as memory:
        assert memory.engine.retriever.layers.depth == depth
        rounds(memory)
        if not depth:
            assert not Rows(memory).both({"a": words(5, 0)})[0].hidden  # nothing to keep


def test_with_a_lora(tmp_path, backbone):
    with memory_on(tmp_path, backbone, lora=True) as memory:
        rounds(memory)


@contextmanager
def layer_tokens(backbone):
    """Tokens, padding included, that each layer computes from now on."""
    counts = [0] * backbone.spec.layers
    handles = []
    for index, layer in enumerate(decoder_layers(backbone.model)):

        def seen(module, args, index=index):
            counts[index] += args[0].shape[1]

        handles.append(layer.mlp.register_forward_pre_hook(seen))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def test_layers_below_compute_new_tokens_only(tmp_path, backbone):
    with memory_on(tmp_path, backbone) as memory:
        rows = Rows(memory)
        rows.both({"a": words(30, 1)})
        with layer_tokens(backbone) as counts:
            given = [LayerRow(words(30, 1) + words(10, 2), [True] * 40)]
            rows.layers.resume(given, rows.head, TOP_K, rows.selection, [rows.earlier["a"]])
        assert counts == [10, 10, 40, 40]


def test_what_two_rows_have_in_common():
    kept = kept_rows([[1, 2, 3]], torch.arange(5.0).view(1, 5, 1))
    assert kept[0].hidden.flatten().tolist() == [2, 3, 4]  # without the padding on the left
    before = Earlier(kept[0], None, 0)
    cases = [([1, 2, 3, 4], 3), ([1, 2, 3], 2), ([1, 9, 3], 1), ([4], 0), ([1], 0)]
    assert [in_common(row, before) for row, _ in cases] == [common for _, common in cases]
    assert in_common([1, 2], None) == 0


def test_a_prefill_that_fails_leaves_the_stock_model(tmp_path, backbone, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    ids = torch.tensor([words(6, 3)])
    with memory_on(tmp_path, backbone) as memory, torch.inference_mode():
        wanted = backbone.model(ids).logits
        rows = Rows(memory)
        rows.both({"a": words(30, 1)})
        with monkeypatch.context() as patch:
            patch.setattr(BankSource, "select", fail)
            with pytest.raises(KeyboardInterrupt):
                rows.both({"a": words(30, 1) + words(10, 2)})
            with pytest.raises(KeyboardInterrupt):
                rows.layers.resume(
                    [LayerRow(words(31, 1), [True] * 31)], rows.head, TOP_K, rows.selection, [rows.earlier["a"]]
                )
        assert not any(module._forward_hooks or "forward" in vars(module) for module in backbone.model.modules())
        assert torch.equal(backbone.model(ids).logits, wanted)
        compare(*rows.both({"a": words(30, 1) + words(10, 2)}))


@pytest.mark.slow
def test_questions_are_answered_as_without_it(tmp_path, monkeypatch):
    """The whole loop on a checkpoint of the reference's kind, in a batch whose rows are in different rounds."""
    folder = reference.write(tmp_path / "checkpoint")
    questions = ["where?", "a longer question about violins?", "when?", "who?"]
    options = {"max_new_tokens": 4, "max_rounds": 3}
    settings = {"dtype": "float32", "keys_dtype": "float32", "device": "cpu"}
    with LatentMemory.open(tmp_path / "bank", model=str(folder), **settings) as memory:
        memory.add(topics())
        loop = memory.engine.answerer
        assert loop is not None and loop.codec.head  # computed once, not counted
        with layer_tokens(memory.engine.backbone) as resumed:
            ours = memory.ask(questions, **options)
        monkeypatch.setattr(Scheduler, "_earlier", lambda *_: None)
        with layer_tokens(memory.engine.backbone) as anew:
            theirs = memory.ask(questions, **options)
    assert max(len(answer.trace.rounds) for answer in ours) > 1
    for one, other in zip(ours, theirs, strict=True):
        assert one.text == other.text and one.trace.ended == other.trace.ended
        assert [r.selected for r in one.trace.rounds] == [r.selected for r in other.trace.rounds]
        assert [s.score for s in one.sources] == pytest.approx([s.score for s in other.sources], abs=1e-5)
        assert one.trace.prompt_tokens == other.trace.prompt_tokens
    assert resumed[2:] == anew[2:] and max(resumed[:2]) < min(anew[:2])
