"""What travels between processes.

Latents go as numpy arrays, which Ray moves without copying or interpreting them. A question, its answer and the texts
of the hits go as lists of numbers, strings and bytes, of which Ray pickles nothing: that would cost more than they do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from msa_plugin.bank.documents import StoredDocument
from msa_plugin.retrieval.ranking import Ranked
from msa_plugin.types import Period, Validity

_FIELDS = tuple(field.name for field in fields(StoredDocument))
_AS_INTEGERS = {torch.bfloat16: torch.int16}  # numpy knows no bfloat16


class Sent(NamedTuple):
    """A tensor's numbers, and the dtype that they had."""

    numbers: NDArray[Any]
    dtype: str


def pack(tensor: Tensor) -> Sent:
    """A tensor for the journey."""
    here = tensor.detach().cpu().contiguous()
    stored = _AS_INTEGERS.get(here.dtype)
    numbers = here if stored is None else here.view(stored)
    return Sent(numbers.numpy(), str(tensor.dtype).removeprefix("torch."))


def unpack(packed: Sent) -> Tensor:
    """The tensor again, in memory of its own: what Ray hands out cannot be written to."""
    dtype = getattr(torch, packed.dtype)
    tensor = torch.from_numpy(packed.numbers.copy())
    return tensor.view(dtype) if dtype in _AS_INTEGERS else tensor


def pack_all(tensors: Sequence[Tensor]) -> list[Sent]:
    """Several."""
    return [pack(tensor) for tensor in tensors]


def flat(tensors: Sequence[Tensor]) -> list[Any]:
    """Small tensors, none of them empty, as a list of bytes and numbers."""
    return [[p.numbers.tobytes(), p.dtype, list(p.numbers.shape)] for p in pack_all(tensors)]


def unflat(parts: list[Any]) -> list[Tensor]:
    """The tensors again."""
    return [torch.frombuffer(bytearray(b), dtype=getattr(torch, dtype)).view(shape) for b, dtype, shape in parts]


def flat_row(row: Sequence[Ranked]) -> list[Any]:
    """A ranking as a list of numbers for each document, whose score and ordinal come first."""
    return [[r.score, r.ordinal, r.best_chunk, list(r.layer_scores), list(r.layer_scores.values())] for r in row]


def unflat_row(row: Sequence[Any]) -> list[Ranked]:
    """The ranking again."""
    return [Ranked(at, score, dict(zip(layers, parts, strict=True)), chunk) for score, at, chunk, layers, parts in row]


def flat_document(document: StoredDocument) -> list[Any]:
    """The fields of a document, its metadata as JSON."""
    period = [*document.period[:2], list(document.period.replaces)]
    lists = {"metadata": json.dumps(document.metadata), "period": period, "validity": list(document.validity)}
    named = vars(document) | lists
    return [named[name] for name in _FIELDS]


def unflat_document(values: Sequence[Any]) -> StoredDocument:
    """The document again."""
    named = dict(zip(_FIELDS, values, strict=True))
    start, end, replaces = named["period"]
    period, validity = Period(start, end, tuple(replaces)), Validity(*named["validity"])
    return StoredDocument(**named | {"metadata": json.loads(named["metadata"]), "period": period, "validity": validity})
