"""How tensors get from host memory to the compute device: at once, or on a stream beside what a GPU computes.

The GPU's half is as small as it can be, since no test runs it where there is none. Whoever uses a transfer is tested
with one that hands out nothing before it was waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Arrived(NamedTuple):
    """Tensors that have arrived."""

    tensors: list[Tensor]

    def wait(self) -> list[Tensor]:
        """The tensors, for whatever the device is given to do after this call; the host does not wait."""
        return self.tensors


class DeviceTransfer:
    """To the CPU, where tensors stay as they are, or to a device without streams, where copies are made at once.

    `direct`: the device computes on host memory as it is, so that nothing need be sent.
    """

    def __init__(self, device: torch.device) -> None:
        """Leads to `device`."""
        self.device = device
        self.direct = device.type == "cpu"

    def send(self, tensors: Sequence[Tensor]) -> Arrival:
        """Start to copy, here at once; on the CPU the very tensors. The sources may be let go of."""
        return Arrived([tensor.to(self.device) for tensor in tensors])

    def kept(self, tensor: Tensor) -> Tensor:
        """A copy in host memory, of the kind that is sent fastest."""
        return tensor.clone()

    def host_bytes(self, count: int) -> int:
        """Bytes of host memory that `kept` takes for a tensor of `count` bytes."""
        return count


class CudaTransfer(DeviceTransfer):
    """To a GPU, on a stream of its own, from pinned memory. Not run so far: written without a GPU."""

    def __init__(self, device: torch.device) -> None:
        """Leads to `device`."""
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, tensors: Sequence[Tensor]) -> Arrival:
        """Pin what is not pinned, and queue the copies; PyTorch keeps pinned memory until its copy is done."""
        pinned = [tensor if tensor.is_pinned() else tensor.contiguous().pin_memory() for tensor in tensors]
        with torch.cuda.stream(self._stream):
            moved = [tensor.to(self.device, non_blocking=True) for tensor in pinned]
        return _OnStream(moved, self._stream.record_event())

    def kept(self, tensor: Tensor) -> Tensor:
        """A pinned copy."""
        return tensor.contiguous().pin_memory()

    def host_bytes(self, count: int) -> int:
        """PyTorch rounds pinned memory up to a power of two."""
        return 1 << (count - 1).bit_length() if count else 0


class _OnStream(NamedTuple):
    tensors: list[Tensor]
    copied: torch.cuda.Event

    def wait(self) -> list[Tensor]:
        for tensor in self.tensors:
            stream = torch.cuda.current_stream(tensor.device)
            stream.wait_event(self.copied)
            tensor.record_stream(stream)  # else its memory could be given out again while that stream reads it
        return self.tensors


Arrival: TypeAlias = Arrived | _OnStream


def transfer_to(device: torch.device) -> DeviceTransfer:
    """The transfer to a device."""
    return CudaTransfer(device) if device.type == "cuda" else DeviceTransfer(device)
