"""Low-rank updates of a backbone's linear layers, added while a pass wants them and gone afterwards.

The weights themselves never change, so the model stays the stock model for everybody else (LoRA, arXiv 2106.09685).
Shapes: r rank; a linear layer maps `inner` numbers to `outer`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msa_plugin.backbone.families import decoder_layers
from msa_plugin.backbone.lower import standing_in
from msa_plugin.config import LoraConfig
from msa_plugin.errors import AdapterError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TARGETS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
_NAME = re.compile(r"lora\.(\d+)\.([a-z_.]+)\.(down|up)")


@dataclass(frozen=True)
class Update:
    """`down` [r, inner] and `up` [outer, r]: the layer's output grows by `up @ down @ x`."""

    down: Tensor
    up: Tensor


class Lora:
    """Updates by decoder layer and by module inside it, such as (3, "self_attn.q_proj")."""

    def __init__(self, updates: Mapping[tuple[int, str], Update], merges: bool = False) -> None:
        """With `merges` updated weights are kept whole, each from its first use on.

        Raises AdapterError for modules outside TARGETS and for shapes that do not fit each other.
        """
        self.updates, self.merges = dict(updates), merges
        self._whole: dict[tuple[int, str], Tensor] = {}
        for (layer, module), update in self.updates.items():
            if module not in TARGETS or layer < 0:
                raise AdapterError(f"LoRA of layer {layer}: {module!r} is none of {', '.join(TARGETS)}")
            if update.down.ndim != 2 or update.up.ndim != 2 or update.down.shape[0] != update.up.shape[1]:
                shapes = f"{tuple(update.down.shape)} and {tuple(update.up.shape)}"
                raise AdapterError(f"LoRA of layer {layer}, {module}: {shapes} are not [r, inner] and [outer, r]")

    @classmethod
    def fresh(
        cls,
        model: PreTrainedModel,
        layers: Iterable[int],
        rank: int,
        modules: Iterable[str] = TARGETS,
        generator: torch.Generator | None = None,
    ) -> Lora:
        """An update that changes nothing yet: `down` random, `up` zero, both float32, ready to be trained."""
        found = {}
        for layer, name, linear in _linears(model, [(i, m) for i in layers for m in modules]):
            outer, inner = linear.weight.shape
            down = torch.randn(rank, inner, generator=generator) / inner**0.5
            found[layer, name] = Update(down, torch.zeros(outer, rank))
        return cls(found)

    @classmethod
    def named(cls, tensors: Mapping[str, Tensor]) -> Lora | None:
        """The update among an adapter's tensors; None when there is none. Raises AdapterError for half of one."""
        parts: dict[tuple[int, str], dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if not name.startswith("lora."):
                continue
            match = _NAME.fullmatch(name)
            if match is None:
                raise AdapterError(f"{name!r} is no name of a LoRA tensor: lora.LAYER.MODULE.down or .up")
            parts.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
        for (layer, module), pair in parts.items():
            if len(pair) < 2:
                raise AdapterError(
                    f"LoRA of layer {layer}, {module} lacks its {'up' if 'down' in pair else 'down'} half"
                )
        return cls({where: Update(**pair) for where, pair in parts.items()}) if parts else None

    def tensors(self) -> dict[str, Tensor]:
        """By name, as an adapter stores them."""
        return {
            f"lora.{layer}.{module}.{part}": getattr(update, part).contiguous()
            for (layer, module), update in self.updates.items()
            for part in ("down", "up")
        }

    @property
    def deepest(self) -> int:
        """The last decoder layer that is updated."""
        return max(layer for layer, _ in self.updates)

    def described(self, *, answers: bool = False) -> LoraConfig:
        """What an adapter's configuration says about it; `answers` as there."""
        layers = tuple(sorted({layer for layer, _ in self.updates}))
        return LoraConfig(layers=layers, rank=max(len(u.down) for u in self.updates.values()), answers=answers)

    def each(self, change: Callable[[Tensor], Tensor]) -> Lora:
        """The same with `change` made to all of its tensors."""
        return Lora({where: Update(change(u.down), change(u.up)) for where, u in self.updates.items()})

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Lora:
        """A copy on `device`, in `dtype` (None: in those it has)."""
        return self.each(lambda t: t.to(device, dtype))

    def trainable(self, device: torch.device) -> Lora:
        """A float32 copy on `device` whose numbers are leaves that train."""
        return self.each(lambda t: t.detach().to(device, torch.float32, copy=True).requires_grad_())

    def detached(self) -> Lora:
        """A copy on the CPU, without gradients."""
        return self.each(lambda t: t.detach().cpu().clone())

    def fitted(self, model: PreTrainedModel) -> Lora:
        """A copy for inference, each update where its layer's weight is. Raises as `check`.

        On a CPU it keeps the updated weights whole, summed in float32 and rounded once: a forward then costs what the
        stock model's does, where thin products cost a quarter to a third more. A GPU has no room to spare for that.
        """
        self.check(model)
        found = {}
        for layer, name, linear in _linears(model, self.updates):
            update, weight = self.updates[layer, name], linear.weight
            kept = torch.float32 if _merges(linear) else weight.dtype
            found[layer, name] = Update(*(t.detach().to(weight.device, kept) for t in (update.down, update.up)))
        return Lora(found, merges=True)

    def check(self, model: PreTrainedModel) -> None:
        """Raises AdapterError unless every update fits its layer of `model`."""
        for layer, name, linear in _linears(model, self.updates):
            update = self.updates[layer, name]
            if (update.up.shape[0], update.down.shape[1]) != tuple(linear.weight.shape):
                raise AdapterError(
                    f"LoRA of layer {layer}, {name} is for [{update.up.shape[0]}, {update.down.shape[1]}], the model "
                    f"has {list(linear.weight.shape)}: it was trained for another model"
                )

    @contextmanager
    def added(self, model: PreTrainedModel) -> Iterator[None]:
        """`model` computes with the updates inside, and without them afterwards, whatever happens."""
        with ExitStack() as undo:
            for layer, name, linear in _linears(model, self.updates):
                if self.merges and _merges(linear):
                    multiply = partial(F.linear, weight=self._merged(layer, name, linear), bias=linear.bias)
                    undo.enter_context(standing_in(linear, multiply))
                else:
                    undo.callback(linear.register_forward_hook(_hook(self.updates[layer, name])).remove)
            yield

    def whole(self, model: PreTrainedModel) -> dict[nn.Module, Tensor]:
        """The weight [outer, inner] of each updated layer with its update added, in the dtype of the weight."""
        return {linear: self._merged(layer, name, linear) for layer, name, linear in _linears(model, self.updates)}

    def _merged(self, layer: int, name: str, linear: nn.Linear) -> Tensor:
        """The weight [outer, inner] with the update added, in the dtype of the weight."""
        if (layer, name) not in self._whole:
            update, weight = self.updates[layer, name], linear.weight.detach()
            with torch.inference_mode(False), torch.no_grad():  # it outlives the forward that needs it first
                self._whole[layer, name] = torch.addmm(weight.float(), update.up, update.down).to(weight.dtype)
        return self._whole[layer, name]


def _linears(model: PreTrainedModel, wanted: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, nn.Linear]]:
    layers = list(decoder_layers(model))
    for layer, name in wanted:
        if layer >= len(layers):
            raise AdapterError(f"LoRA of layer {layer}: the backbone has {len(layers)} layers")
        module = layers[layer].get_submodule(name)
        if not isinstance(module, nn.Linear):
            raise AdapterError(f"layer {layer}: {name} is no linear layer of this backbone")
        yield layer, name, module


def _merges(linear: nn.Linear) -> bool:
    return type(linear) is nn.Linear and linear.weight.device.type == "cpu"


def _hook(update: Update) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        x = given[0]
        low = F.linear(x, update.down.to(x.dtype))
        return output + F.linear(low, update.up.to(x.dtype))

    return hook
