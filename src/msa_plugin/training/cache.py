"""States in front of the first trained layer, computed once and kept on disk; and forwards that start from them.

A text's states at the input of layer L depend on nothing that trains when layers below L are frozen. They are kept in
one file that grows, mapped into memory, beside an index whose lines are written after the states they name.
Shapes: B rows, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from msa_plugin.backbone.attention import CausalRows, DepthReached
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.families import decoder_layers
from msa_plugin.bench import jsonl
from msa_plugin.encoding.encoder import pad_right, plan_batches
from msa_plugin.errors import ConfigError, TrainingError
from msa_plugin.training.checkpoint import writing

Kind = Literal["float16", "bfloat16", "float32"]
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


class _Skipped(nn.Module):
    """In the place of a layer whose output is known, or read by nobody."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states
        self.self_attn = nn.Identity()  # what a pass hooks into

    def forward(self, hidden_states: Tensor, **given: Any) -> Tensor:
        return self.states


@contextmanager
def starting_at(backbone: Backbone, layer: int, states: Tensor) -> Iterator[None]:
    """Forwards of `backbone` inside run its layers from `layer` on, whose input is `states` [B, T, hidden].

    Ids still have to be given, for their shape. The layers that run are the model's own, at their own places. Raises
    ConfigError for a layer that the backbone lacks. No other thread may use the model meanwhile.
    """
    stack, whole = backbone.model.model, decoder_layers(backbone.model)
    if not 0 < layer < len(whole):
        raise ConfigError(f"a forward starts at layer 1 to {len(whole) - 1} of {backbone.name}, not {layer}")
    before = stack.layers
    skipped = _Skipped(states.to(device=backbone.device, dtype=backbone.dtype))
    try:
        stack.layers = nn.ModuleList([*[skipped] * layer, *whole[layer:]])
        yield
    finally:
        stack.layers = before


def input_states(backbone: Backbone, layer: int, windows: Sequence[Sequence[int]], start: int = 0) -> list[Tensor]:
    """Input of `layer`, before its norm, of each window of ids alone at positions from `start`: [T, hidden] each."""
    ids, mask = pad_right([list(w) for w in windows], backbone.device)
    positions = start + torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    found: list[Tensor] = []

    def take(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(named["hidden_states"] if "hidden_states" in named else given[0])
        raise DepthReached

    handle = decoder_layers(backbone.model)[layer].register_forward_pre_hook(take, with_kwargs=True)
    try:
        backbone.run(CausalRows(), ids, mask, positions, logits="none")
    finally:
        handle.remove()
    return [found[0][row, : len(window)].clone() for row, window in enumerate(windows)]


class StateCache:
    """States of windows of ids by what they are, on disk."""

    def __init__(
        self, backbone: Backbone, layer: int, folder: Path, *, dtype: Kind = "float16", batch_tokens: int = 4096
    ) -> None:
        """States at the input of `layer`, kept as `dtype` in a part of `folder` that is this backbone's and layer's.

        Raises ConfigError for a layer that the backbone lacks, TrainingError while another process fills it.
        """
        if not 0 < layer < backbone.spec.layers:
            raise ConfigError(f"states are kept in front of layer 1 to {backbone.spec.layers - 1}, not {layer}")
        self.backbone, self.layer, self.dtype, self.batch_tokens = backbone, layer, dtype, batch_tokens
        self.folder = folder.resolve() / f"{backbone.weights_hash()}-{layer}-{dtype}"
        self._data, self._index = self.folder / "states.bin", self.folder / "index.jsonl"
        with writing(self.folder, "nothing was computed yet"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._data.touch()
        self._lock = FileLock(self.folder / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise TrainingError(f"{self.folder} is in use by another process; give each its own") from error
        self._places = {r["key"]: (int(r["at"]), int(r["tokens"])) for r in jsonl.read(self._index).records}
        self._map: Any = None

    def __enter__(self) -> StateCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have it."""
        self._map = None
        self._lock.release()

    @property
    def tokens(self) -> int:
        """Tokens whose states it holds."""
        return sum(tokens for _, tokens in self._places.values())

    def bytes_of(self, tokens: int) -> int:
        """What the states of so many tokens take on disk."""
        return tokens * self.backbone.spec.hidden * _BYTES[self.dtype]

    def states(self, windows: Sequence[Sequence[int]], start: int = 0) -> list[Tensor]:
        """The states of each window [T, hidden], in the backbone's dtype and on its device; computes what is missing.

        Raises TrainingError when the disk refuses; what was kept before stands.
        """
        keys = [_key(window, start) for window in windows]
        missing = {key: window for key, window in zip(keys, windows, strict=True) if key not in self._places}
        for batch in plan_batches([len(w) for w in missing.values()], self.batch_tokens):
            some = [list(missing.items())[i] for i in batch]
            self._keep([key for key, _ in some], input_states(self.backbone, self.layer, [w for _, w in some], start))
        return [self._read(key) for key in keys]

    def _keep(self, keys: Sequence[str], states: Sequence[Tensor]) -> None:
        """Append states, then the lines that name them: a process killed in between leaves bytes that nobody reads."""
        size = self.backbone.spec.hidden * _BYTES[self.dtype]
        at = max((begin + tokens * size for begin, tokens in self._places.values()), default=0)
        lines: list[dict[str, Any]] = []
        with writing(self._data, f"the states of {self.tokens:,} tokens are kept"):
            with self._data.open("r+b") as file:
                file.seek(at)
                for key, value in zip(keys, states, strict=True):
                    lines.append({"key": key, "at": at, "tokens": len(value)})
                    raw = value.detach().to("cpu", getattr(torch, self.dtype)).contiguous()
                    at += file.write(raw.view(torch.uint8).numpy().tobytes())
                file.flush()
            jsonl.append(self._index, lines)
        self._places |= {line["key"]: (line["at"], line["tokens"]) for line in lines}
        self._map = None

    def _read(self, key: str) -> Tensor:
        begin, tokens = self._places[key]
        if self._map is None:
            self._map = np.memmap(self._data, dtype=np.uint8, mode="r")
        raw = self._map[begin : begin + self.bytes_of(tokens)]
        if len(raw) < self.bytes_of(tokens):
            raise TrainingError(f"{self._data} is shorter than its index says; remove {self.folder} to fill it again")
        kept = torch.from_numpy(raw.copy()).view(getattr(torch, self.dtype)).view(tokens, -1)
        return kept.to(device=self.backbone.device, dtype=self.backbone.dtype)


def _key(window: Sequence[int], start: int) -> str:
    return hashlib.sha256(f"{start}:{','.join(map(str, window))}".encode()).hexdigest()[:32]
