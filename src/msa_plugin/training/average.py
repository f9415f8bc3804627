"""One adapter from several that began alike: the mean of their weights, which often ranks better than each of them.

Runs that begin from the same weights and see other data or seeds end in one basin of the loss (arXiv 2203.05482).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.lora import Lora, Update
from msa_plugin.backbone.router import Router, RouterLayer
from msa_plugin.errors import AdapterError

_OWN = {"name", "provenance", "measured", "lora", "relevance", "format_version"}  # what averaged adapters may differ in


@dataclass(frozen=True)
class Averaged:
    """The adapter, and the share of the summed updates' squared numbers that its rank could not hold."""

    adapter: Adapter
    lost: float


def average(adapters: Sequence[Adapter], rank: int | None = None) -> Averaged:
    """The mean of projections, token weights and LoRA products; LoRA cut to `rank` (None: the highest among them).

    The mean of products has the sum of their ranks; of it the best approximation of `rank` is kept. Raises AdapterError
    for none, and for adapters that differ in anything but weights, rank, name and notes.
    """
    if not adapters:
        raise AdapterError("there is no adapter to average")
    first = adapters[0]
    about = [a.config.model_dump(exclude=_OWN) for a in adapters]
    for other, adapter in zip(about, adapters, strict=True):
        if unlike := [field for field, value in about[0].items() if other[field] != value]:
            raise AdapterError(
                f"{first.config.name} and {adapter.config.name} differ in {', '.join(unlike)}; only adapters that "
                "began from the same one can be averaged"
            )
    router = Router(first.config.routing, _layers(adapters), _mean([a.router.token_weights for a in adapters]))
    lora, lost = _lora(adapters, rank)
    notes = {"average_of": [dict(a.config.provenance) for a in adapters]}
    described = None if lora is None else lora.described(answers=_answers(adapters))
    config = first.config.model_copy(update={"provenance": notes, "measured": {}, "lora": described, "relevance": None})
    return Averaged(replace(first, config=config, router=router, lora=lora), lost)


def _answers(adapters: Sequence[Adapter]) -> bool:
    said = {a.answers_with_lora for a in adapters if a.lora is not None}
    if len(said) > 1:
        raise AdapterError("some of these adapters answer with their LoRA and others do not")
    return said == {True}


def _mean(values: Sequence[Tensor | None]) -> Tensor | None:
    given = [v.float() for v in values if v is not None]
    if given and (len(given) < len(values) or len({v.shape for v in given}) > 1):
        raise AdapterError("some of these adapters have weights that others lack, or of another shape")
    return torch.stack(given).mean(0) if given else None


def _layers(adapters: Sequence[Adapter]) -> dict[int, RouterLayer]:
    layers = {}
    for index in adapters[0].router.layers:
        alike = [a.router.layers[index] for a in adapters]
        q, k = _mean([r.q_weight for r in alike]), _mean([r.k_weight for r in alike])
        assert q is not None and k is not None
        layers[index] = RouterLayer(q, k, _mean([r.q_bias for r in alike]), _mean([r.k_bias for r in alike]))
    return layers


def _lora(adapters: Sequence[Adapter], rank: int | None) -> tuple[Lora | None, float]:
    loras = [a.lora for a in adapters if a.lora is not None]
    if not loras:
        return None, 0.0
    rank = rank or max(len(u.down) for lora in loras for u in lora.updates.values())
    kept, whole, found = 0.0, 0.0, {}
    for where in sorted({where for lora in loras for where in lora.updates}):
        updates = [lora.updates[where] for lora in loras if where in lora.updates]
        found[where], energy = _mean_update(updates, len(adapters), rank)
        kept, whole = kept + float(energy[:rank].sum()), whole + float(energy.sum())
    return Lora(found), 1 - kept / whole if whole else 0.0


def _mean_update(updates: Sequence[Update], count: int, rank: int) -> tuple[Update, Tensor]:
    """The mean of products over `count` adapters, and its squared singular values, greatest first.

    Never multiplied out: with QR of both thin factors the decomposition is one of their ranks' sum.
    """
    if len({(len(u.up), u.down.shape[1]) for u in updates}) > 1:
        raise AdapterError("these adapters update layers of another shape")
    up = torch.cat([u.up.double() for u in updates], 1) / count
    down = torch.cat([u.down.double() for u in updates], 0)
    left, small = torch.linalg.qr(up)
    right, other = torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(small @ other.T)
    root = values[:rank].sqrt()  # shared by both factors, as training leaves them of like size
    thin, wide = (right @ v[:rank].T) * root, (left @ u[:, :rank]) * root
    return Update(thin.T.float().contiguous(), wide.float().contiguous()), values**2
