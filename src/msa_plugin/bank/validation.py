"""The bank's door: what may be stored, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from msa_plugin.bank.quantize import content_scale_names, is_scale, scale_name
from msa_plugin.bank.segment import DTYPES, StoredLatents
from msa_plugin.errors import DuplicateDocumentError, InvalidDocumentError
from msa_plugin.types import Document, EncodedDocument


def check_documents(documents: Sequence[EncodedDocument]) -> list[StoredLatents]:
    """The documents' tensors, once everything fits together.

    Raises InvalidDocumentError for a document or tensors that cannot be stored, DuplicateDocumentError for an id that
    occurs twice.
    """
    seen: set[str] = set()
    latents: list[StoredLatents] = []
    for item in documents:
        Document.of(item.document)
        name = item.document.id
        if name in seen:
            raise DuplicateDocumentError(f"document {name!r} occurs twice in one commit; keep one of them")
        seen.add(name)
        latents.append(_checked(name, StoredLatents(item.keys, item.content, item.content_scales)))
        if latents[-1].signature != latents[0].signature:
            raise InvalidDocumentError(
                f"document {name!r}: its latents are {latents[-1].signature}, the first document's are "
                f"{latents[0].signature}; encode all of them with the same settings"
            )
    return latents


def check_ordinals(given: Sequence[int] | None, last: int, count: int) -> list[int]:
    """Ordinals of `count` new documents of a bank whose last one is `last`: those `given`, or the next.

    Raises InvalidDocumentError where those given are not as many, ascending and later: a bank's order is kept for good.
    """
    ordinals = list(range(last + 1, last + 1 + count) if given is None else given)
    if len(ordinals) != count or any(b <= a for a, b in pairwise([last, *ordinals])):
        raise InvalidDocumentError(
            f"ordinals {ordinals[:5]} do not follow {last}, the bank's last; somebody else has written to it since"
        )
    return ordinals


def _checked(name: str, latents: StoredLatents) -> StoredLatents:
    tensors = latents.all
    if any(tensor.dtype not in DTYPES for tensor in tensors):
        raise InvalidDocumentError(
            f"document {name!r}: dtypes {[t.dtype for t in tensors]}; the bank stores {[*DTYPES]}"
        )
    if not latents.keys or any(tensor.ndim != 2 for tensor in latents.keys.values()) or not latents.chunks:
        raise InvalidDocumentError(f"document {name!r}: routing keys must be [chunks, width], with at least one chunk")
    if any(tensor.ndim != 4 or tensor.shape[1] != 2 for tensor in latents.content.values()):
        raise InvalidDocumentError(f"document {name!r}: content must be [chunks, 2, kv_heads, head_dim]")
    for group in (latents.keys.values(), latents.content.values()):
        if len({tensor.shape[0] for tensor in group}) > 1:
            raise InvalidDocumentError(f"document {name!r}: its layers have different numbers of chunks")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in latents.keys.values()):
        raise InvalidDocumentError(
            f"document {name!r}: its routing keys hold NaN or infinity and would spoil every ranking"
        )
    _check_scales(name, latents.keys)
    _check_content_scales(name, latents)
    return latents


def _check_scales(name: str, keys: Mapping[str, Tensor]) -> None:
    """int8 keys have positive scales beside them, and nothing else does."""
    wanted = {scale_name(group) for group, tensor in keys.items() if tensor.dtype == torch.int8}
    if wanted != {group for group in keys if is_scale(group)}:
        raise InvalidDocumentError(f"document {name!r}: int8 routing keys, and only those, come with their scales")
    for scales in map(keys.__getitem__, wanted):
        if scales.dtype != torch.float32 or scales.shape[1] != 1 or not bool((scales > 0).all()):
            raise InvalidDocumentError(f"document {name!r}: scales of int8 keys are float32 [chunks, 1] and positive")


def _check_content_scales(name: str, latents: StoredLatents) -> None:
    """int8 content has the positive scales that `quantized_content` makes, and no other content has any."""
    wanted: dict[str, tuple[int, ...]] = {}
    for layer, stored in latents.content.items():
        if stored.dtype == torch.int8:
            rows, _, heads, width = stored.shape
            wanted |= zip(content_scale_names(layer), [(1, heads, width), (rows, heads)], strict=True)
    if {n: (tuple(t.shape), t.dtype) for n, t in latents.scales.items()} != {
        n: (shape, torch.bfloat16) for n, shape in wanted.items()
    }:
        raise InvalidDocumentError(f"document {name!r}: int8 content, and only that, comes with its scales in bfloat16")
    if not all(bool((scales.isfinite() & (scales > 0)).all()) for scales in latents.scales.values()):
        raise InvalidDocumentError(
            f"document {name!r}: scales of int8 content must be positive numbers; its K, V hold NaN or infinity"
        )
