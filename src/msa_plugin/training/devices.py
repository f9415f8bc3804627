"""Training on several devices: each process takes its own micro-batches, and gradients are averaged.

`accelerate` is used only when more than one process was launched (`accelerate launch`, `torchrun`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class Devices:
    """This process among `count`; `main` writes files."""

    def __init__(self) -> None:
        """Joins the others when the environment says that there are any."""
        self._accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self._accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.count: int = 1 if self._accelerator is None else self._accelerator.num_processes
        self.rank: int = 0 if self._accelerator is None else self._accelerator.process_index

    @property
    def main(self) -> bool:
        """Whether this process writes files and says things."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        if self._accelerator is not None:
            return self._accelerator.device  # type: ignore[no-any-return]
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Set every gradient to its mean over all processes; one without a gradient counts as zero."""
        if self._accelerator is None:
            return
        trained = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in trained])
        had = torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=flat.device)
        flat = self._accelerator.reduce(flat, reduction="mean")
        anyone = self._accelerator.reduce(had, reduction="sum")
        parts = flat.split([p.numel() for p in trained])
        for parameter, part, some in zip(trained, parts, anyone.tolist(), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if some else None

    def gather(self, said: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What every process says, in order of rank, as JSON."""
        if self._accelerator is None:
            return [dict(said)]
        data = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8).to(self.device)
        padded = self._accelerator.pad_across_processes(data, pad_index=ord(" "))
        every = self._accelerator.gather(padded).cpu().view(self.count, -1)
        return [json.loads(bytes(row.tolist())) for row in every]

    def wait(self) -> None:
        """Until every process is here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()
