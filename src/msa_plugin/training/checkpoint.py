"""Checkpoints of a training: parameters, Adam's moments and the step, each folder whole or absent.

`run.json` beside them says what the training is made of; another one does not go on from them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from msa_plugin.data.jsonl import write_atomic
from msa_plugin.errors import TrainingError

_TENSORS, _STATE, _RUN = "state.safetensors", "state.json", "run.json"
_STEP = re.compile(r"step-(\d{8})")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # as torch's AdamW names them


@dataclass(frozen=True)
class RunState:
    """Where a training stands after `step` steps: seconds and tokens spent, and the best held-out figure so far."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    best: float | None = None


class Checkpoints:
    """The checkpoints in `out`/checkpoints."""

    def __init__(self, out: Path) -> None:
        """Nothing is read or made yet."""
        self.out, self.folder = out, out / "checkpoints"

    def claim(self, identity: Mapping[str, Any], free: frozenset[str] = frozenset()) -> None:
        """Make `out` the folder of this training, or see that it is. `free` names settings that may differ.

        Raises TrainingError for the folder of another training, naming what differs, or one that cannot be written.
        """
        path, mine = self.out / _RUN, json.loads(json.dumps(identity, default=str))
        if not path.exists():
            if self.latest() is not None:
                raise TrainingError(f"{self.folder} holds checkpoints and {_RUN} is missing; restore it, or choose "
                                    "another folder")  # fmt: skip
            with writing(path, "training has not begun"):
                write_atomic(path, json.dumps(mine, indent=1, sort_keys=True) + "\n")
            return
        differing = [d for d in differences(_read_json(path), mine) if d.split(":")[0].split(".")[-1] not in free]
        if differing:
            raise TrainingError(
                f"{self.out} holds another training ({'; '.join(differing[:6])}); "
                "set these back to go on with it, or choose another folder"
            )

    def save(
        self, state: RunState, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, keep: int
    ) -> Path:
        """Write a checkpoint, then delete all but the last `keep`. Raises TrainingError when the disk refuses."""
        final = self.folder / f"step-{state.step:08d}"
        if final.exists():
            return final  # the same step of the same training
        draft = final.with_suffix(".part")
        last = self.latest()
        step = int(last.name.removeprefix("step-")) if last else 0
        stands = f"the checkpoint of step {step} stands" if last else "there is no earlier checkpoint"
        with writing(draft, stands):
            try:
                draft.mkdir(parents=True, exist_ok=True)
                save_file(_tensors(parameters, optimizer), str(draft / _TENSORS))
                write_atomic(draft / _STATE, json.dumps(asdict(state)) + "\n")
                with (draft / _TENSORS).open("rb") as file:
                    os.fsync(file.fileno())
                draft.rename(final)
            except OSError:
                shutil.rmtree(draft, ignore_errors=True)
                raise
        for old in self._all()[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def latest(self) -> Path | None:
        """The newest checkpoint; None before the first."""
        return next(iter(reversed(self._all())), None)

    def restore(self, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> RunState:
        """Set parameters and moments as they were at the newest checkpoint, if there is one; in place.

        Raises TrainingError for a damaged checkpoint and for one of other parameters.
        """
        path = self.latest()
        if path is None:
            return RunState()
        try:
            tensors = load_file(str(path / _TENSORS))
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{path} cannot be read ({error}); remove it to go on from the one before") from error
        saved = {name.split("/", 1)[1]: t.shape for name, t in tensors.items() if name.startswith("parameter/")}
        wanted = {name: p.shape for name, p in parameters.items()}
        if saved != wanted:
            odd = sorted(n for n in {*saved, *wanted} if saved.get(n) != wanted.get(n))
            raise TrainingError(f"{path} holds other parameters ({', '.join(odd[:4])}); choose another folder")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
                moments = {m: tensors[f"{m}/{name}"] for m in MOMENTS if f"{m}/{name}" in tensors}
                if moments:
                    optimizer.state[parameter] = {
                        m: t if m == "step" else t.to(parameter.device) for m, t in moments.items()
                    }
        return RunState(**_read_json(path / _STATE))

    def _all(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _STEP.fullmatch(path.name))


def _tensors(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {}
    for name, parameter in parameters.items():
        found[f"parameter/{name}"] = parameter.detach().cpu().contiguous()
        for moment, value in optimizer.state.get(parameter, {}).items():
            found[f"{moment}/{name}"] = value.detach().cpu().contiguous()
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); restore it, or choose another folder") from error
    if not isinstance(found, dict):
        raise TrainingError(f"{path} is not a JSON object; restore it, or choose another folder")
    return found


def differences(theirs: Any, mine: Any, at: str = "") -> Iterator[str]:
    """What differs between two JSON values, each with both."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in sorted({*theirs, *mine}):
            yield from differences(theirs.get(key), mine.get(key), f"{at}.{key}" if at else key)
    elif theirs != mine:
        yield f"{at}: it has {_short(theirs)}, this one {_short(mine)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextmanager
def writing(path: Path, stands: str) -> Iterator[None]:
    """Raises TrainingError for what the disk refuses inside; `stands` says what is left."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise TrainingError(f"{path}: {reason}; {stands}. Free space and start the same command again") from error
