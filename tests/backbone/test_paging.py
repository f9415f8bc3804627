"""Decoding over pages gives what decoding over copies gives, alone, joined, and with several tokens at once."""

import pytest
import torch

from msa_plugin.backbone.attention import ForwardState
from msa_plugin.backbone.batching import joined
from msa_plugin.bank.device_transfer import DeviceTransfer
from msa_plugin.bank.tiers import Budget, ContentTier
from msa_plugin.encoding.encoder import pad_left
from msa_plugin.retrieval import assembly
from msa_plugin.retrieval.assembly import BankSource, Extent, encode_head
from tiny import tiny_backbone

READING = (2, 3)
CHOSEN = [
    [Extent(3), Extent(1, 0, 1)],
    [Extent(3), Extent(2), Extent(5)],
    [],
]  # in documents of as many chunks as their number


class _Store:
    def content(self, ordinals, layer):
        made = [torch.Generator().manual_seed(10 * layer + o) for o in ordinals]
        return [torch.randn(o, 2, 2, 16, generator=g) for o, g in zip(ordinals, made, strict=True)]


@pytest.fixture(scope="module", params=["llama", "mistral-sliding", "gemma2"])
def backbone(request):
    """Without and with sliding windows, and with logits that are capped, which no kernel does."""
    return tiny_backbone(request.param)


@pytest.fixture(params=["copies", "pages"])
def paged(request, monkeypatch):
    """Whether there is a kernel; its twin stands in for it."""
    monkeypatch.setattr(assembly, "use_triton", lambda kernel, how, tensors: request.param == "pages")
    return request.param == "pages"


def _prefill(backbone, rows, chosen):
    head = encode_head(backbone, [1, 40, 41])
    store = ContentTier(_Store(), DeviceTransfer(torch.device("cpu")), Budget(0))
    source = BankSource(store, READING, head, len(rows), selected=chosen, kernels="auto")
    state = ForwardState(source=source, keep_cache=True)
    ids, mask = pad_left(rows, backbone.device)
    return state, _step(backbone, state, ids, mask, 0)


def _step(backbone, state, ids, mask, at):
    positions = 10 + at + (mask.cumsum(1) - 1).clamp(min=0)
    return backbone.run(state, ids, mask, positions, logits="all")[mask]


ROWS = [[50, 51, 52, 53], [60], [70, 71]]


def _run(backbone):
    """Logits of a prefill, of a step, of a step of several tokens a row, and of steps of rows put together."""
    state, first = _prefill(backbone, ROWS, CHOSEN)
    one = torch.tensor([[5], [6], [7]])
    found = [first, _step(backbone, state, one, torch.ones(3, 1).bool(), 4)]
    several, mask = pad_left([[8, 9], [10], [11, 12, 13]], backbone.device)
    found.append(_step(backbone, state, several, mask, 5))
    other, more = _prefill(backbone, [[80, 81]], [[Extent(4)]])
    bare, _ = _prefill(backbone, [[90]], [[]])
    both = joined([(state, [2, 0]), (other, [0]), (bare, [0])])
    four = torch.tensor([[5], [6], [7], [8]])
    found += [more, *(_step(backbone, both, four, torch.ones(4, 1).bool(), at) for at in (8, 9))]
    fewer = joined([(both, [2, 1])])
    return [*found, _step(backbone, fewer, four[:2], torch.ones(2, 1).bool(), 10)], state


def test_the_same_logits(backbone, monkeypatch):
    runs = {}
    for paged in (False, True):
        monkeypatch.setattr(assembly, "use_triton", lambda kernel, how, tensors, paged=paged: paged)
        runs[paged], state = _run(backbone)
        assert [layer for layer in range(4) if state.pages_of(layer) is not None] == (list(READING) if paged else [])
    torch.testing.assert_close(runs[True], runs[False], atol=2e-5, rtol=2e-5)


def test_pages_hold_each_document_once_and_the_cache_none(backbone, paged):
    state, _ = _prefill(backbone, ROWS, CHOSEN)
    slots = {layer: state.caches[layer].current[0].shape[2] for layer in range(4)}
    memory = {layer: slots[layer] - max(map(len, ROWS)) - 3 for layer in range(4)}
    assert memory == dict.fromkeys(range(4), 0) | ({} if paged else dict.fromkeys(READING, 10))
    if paged:
        assert state.pages_of(2).content.shape[0] == 3 + 1 + 2 + 5
