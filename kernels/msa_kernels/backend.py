"""Which backend runs a kernel: Triton on a GPU where it can, plain torch everywhere else, and a word on why."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Literal, TypeAlias

from torch import Tensor

Backend: TypeAlias = Literal["auto", "torch", "triton"]
log = logging.getLogger("msa_kernels")


class BackendUnavailableError(RuntimeError):
    """Triton was asked for by name and cannot run this call."""


def use_triton(kernel: str, backend: Backend, tensors: Sequence[Tensor], unsupported: str = "") -> bool:
    """Whether Triton runs `kernel` on `tensors`.

    "auto" takes Triton for tensors on one CUDA device where it is installed and nothing is `unsupported` (a reason,
    or ""); otherwise plain torch, and the reason is logged once. "triton" also runs on the CPU under
    TRITON_INTERPRET=1, for tests. Raises BackendUnavailableError where "triton" cannot run, ValueError for any other
    name.
    """
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"unknown backend {backend!r}: expected 'auto', 'torch' or 'triton'")
    if backend == "torch":
        return False
    reason = _obstacle(tensors, interpreted=backend == "triton" and _interpreting()) or unsupported
    if not reason:
        return True
    if backend == "triton":
        raise BackendUnavailableError(f"{kernel} cannot run in Triton: {reason}; use backend='auto' or 'torch'")
    _say(kernel, reason)
    return False


def _obstacle(tensors: Sequence[Tensor], *, interpreted: bool) -> str:
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return f"its tensors lie on several devices ({', '.join(sorted(map(str, devices)))})"
    device = next(iter(devices)).type
    if device != "cuda" and not (interpreted and device == "cpu"):
        return f"its tensors lie on {device}, not on a CUDA device"
    if not _installed():
        return "Triton is not installed (pip install 'msa-plugin[triton]')"
    return ""


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _say(kernel: str, reason: str) -> None:
    log.info("%s runs in plain torch: %s", kernel, reason)
