"""Ways to search the keys of a bank: what a memory does, on a CPU and on a GPU, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from scale_sample import BankShape
from torch import Tensor

from msa_kernels import chunk_owners, route_topk
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.view import Selection
from msa_plugin.retrieval.faiss_index import faiss_threads, load_faiss
from msa_plugin.retrieval.prefilter import Prefilter
from msa_plugin.retrieval.queries import collapsed
from msa_plugin.retrieval.scorer import route

DEPTH = 10  # documents that are found
# Exact backends, and the precision of the bank that they read; any other name is a prefilter over float16.
EXACT = {
    **{"torch": "float16", "int8": "int8", "triton": "float16", "triton-int8": "int8"},
    **{"heads": "float16", "flat": "float16"},
}
_PANEL = 1 << 18  # numbers of keys that `heads` reads at once, which caches hold
Search: TypeAlias = Callable[[Tensor, Tensor], tuple[list[int], int | None]]
# One question's queries and votes -> documents, bytes read if not all keys once


def searching(backend: str, shape: BankShape, bank: MemoryBank, selection: Selection, place: Path) -> Search:
    """A backend by name, ready to search; `place` is where a prefilter's index is kept."""
    made = {"heads": _heads, "flat": _flat, "triton": _triton, "triton-int8": _triton}
    if backend not in EXACT:
        return _prefiltered(shape, selection, backend, place, bank)
    return made[backend](shape, selection) if backend in made else partial(_exactly, shape, selection)


def _exactly(shape: BankShape, selection: Selection, queries: Tensor, votes: Tensor) -> tuple[list[int], int | None]:
    found = route(queries, votes, selection.key_blocks(shape.group), DEPTH, shape.config)
    return found.ordinals[0].tolist(), None


def _prefiltered(shape: BankShape, selection: Selection, spec: str, place: Path, bank: MemoryBank) -> Search:
    index = Prefilter.open(place / "index", bank.fingerprint, selection, shape.config, spec)
    mean = selection.documents and sum(len(s.keys[shape.group]) for s, _ in selection.parts) / selection.documents
    width = next(iter(shape.config.key_groups.values()))
    rescored = int(index.spec.candidates * mean * width * 2)
    read = (index.bytes if index.spec.kind == "coarse" else 0) + rescored

    def search(queries: Tensor, votes: Tensor) -> tuple[list[int], int | None]:
        return index.search(queries, votes, selection, DEPTH)[0].ordinals[0].tolist(), read

    return search


def _joined(shape: BankShape, selection: Selection, device: str) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """All keys in one tensor, their scales if they have some, offsets and ordinals of documents."""
    blocks = list(selection.key_blocks(shape.group))
    keys = torch.cat([block.keys.to(device) for block in blocks])
    scales = [block.scales.to(device) for block in blocks if block.scales is not None]
    lengths = torch.cat([block.offsets.diff() for block in blocks])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(device)
    return keys, torch.cat(scales) if scales else None, offsets, torch.cat([block.ordinals for block in blocks])


def _triton(shape: BankShape, selection: Selection) -> Search:
    """All keys on the GPU, and the fused kernel."""
    keys, scales, offsets, ordinals = _joined(shape, selection, "cuda")
    owners = chunk_owners(offsets, len(keys))

    def search(queries: Tensor, votes: Tensor) -> tuple[list[int], int | None]:
        left = collapsed(queries.to("cuda"), shape.config)
        found = route_topk(left[:, None], votes.to("cuda"), keys, offsets, DEPTH, scales=scales, owners=owners)
        return ordinals[found.documents[0].cpu()].tolist(), None

    return search


def _heads(shape: BankShape, selection: Selection) -> Search:
    """The formula as it is written, with all heads, in panels that caches hold and with buffers that are used again."""
    keys, _, offsets, ordinals = _joined(shape, selection, "cpu")
    width = shape.config.head_dim
    kv = keys.shape[1] // width  # of all layers of a shared selection together
    rows = max(64, _PANEL * torch.get_num_threads() // (kv * width) // 64 * 64)

    def search(queries: Tensor, votes: Tensor) -> tuple[list[int], int | None]:
        asked = _per_head(shape, queries)
        heads, tokens = asked.shape[:2]
        group = heads // kv
        each = asked.reshape(kv, group * tokens, width)
        panel, products = torch.empty((rows, kv, width)), torch.empty((heads, tokens, rows))
        scores = torch.empty(len(keys))
        for start in range(0, len(keys), rows):
            part = keys[start : start + rows]
            panel[: len(part)].copy_(part.view(len(part), kv, width))
            for head in range(kv):
                out = products[head * group : (head + 1) * group].view(group * tokens, rows)
                torch.mm(each[head], panel[:, head].T, out=out)
            torch.amax(products.mean(0)[:, : len(part)], 0, out=scores[start : start + len(part)])
        documents = torch.segment_reduce(scores, "max", offsets=offsets, unsafe=True)
        return ordinals[documents.topk(min(DEPTH, len(documents))).indices].tolist(), None

    return search


def _flat(shape: BankShape, selection: Selection) -> Search:
    """FAISS over float32 keys: each token's best chunks, as many as the wanted documents may have, merged."""
    keys, _, offsets, ordinals = _joined(shape, selection, "cpu")
    index, depth = load_faiss().IndexFlatIP(keys.shape[1]), min(DEPTH * int(offsets.diff().max()), len(keys))
    for start in range(0, len(keys), 1 << 16):
        index.add(keys[start : start + (1 << 16)].float().numpy())

    def search(queries: Tensor, votes: Tensor) -> tuple[list[int], int | None]:
        vectors = collapsed(queries, shape.config)[0].contiguous().numpy()
        with faiss_threads():
            values, found = index.search(vectors, depth)
        owners = torch.searchsorted(offsets, torch.from_numpy(found).flatten(), right=True) - 1
        documents, place = torch.unique(owners, return_inverse=True)
        scores = torch.full(documents.shape, -torch.inf)
        scores.scatter_reduce_(0, place, torch.from_numpy(values).flatten(), "amax")
        best = documents[scores.topk(min(DEPTH, len(documents))).indices]
        return ordinals[best].tolist(), 4 * keys.numel()

    return search


def _per_head(shape: BankShape, queries: Tensor) -> Tensor:
    """The same queries for each head [H, T, D]; where heads were collapsed, those of a group are alike."""
    if queries.ndim == 4:
        return queries[0]
    config = shape.config
    split = queries[0].reshape(-1, config.kv_heads, config.head_dim).transpose(0, 1)
    return split.repeat_interleave(config.heads // config.kv_heads, 0)
