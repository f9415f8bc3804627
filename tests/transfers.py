"""Content to be sent, and a transfer to a device that is not there: what was sent is had only by waiting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Store:
    """Content of documents, each of as many chunks as its number, and what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[int]]] = []

    def content(self, ordinals: Sequence[int], layer: int) -> list[Tensor]:
        self.asked.append((layer, list(ordinals)))
        return [torch.full((o, 2, 1, 4), float(10 * layer + o)) for o in ordinals]


class LateArrival:
    def __init__(self, transfer: LateTransfer, number: int, tensors: list[Tensor]) -> None:
        self.transfer, self.number, self.tensors = transfer, number, tensors

    def wait(self) -> list[Tensor]:
        self.transfer.log.append(("wait", self.number))
        return self.tensors


class LateTransfer:
    """Stands in for the one to a GPU; `sent` are the tensors of each sending, `log` the order of it all."""

    direct = False
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.sent: list[list[Tensor]] = []

    def send(self, tensors: Sequence[Tensor]) -> LateArrival:
        self.log.append(("send", len(self.sent)))
        self.sent.append([tensor.clone() for tensor in tensors])
        return LateArrival(self, len(self.sent) - 1, self.sent[-1])

    def kept(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def host_bytes(self, count: int) -> int:
        """As pinned memory is rounded."""
        return 1 << (count - 1).bit_length() if count else 0

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensors in self.sent for tensor in tensors)
