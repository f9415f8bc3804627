"""Memory that this process has resident, the most that it had since it was asked to forget, and that of tensors."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak() -> bool:
    """Begin anew from what is resident now; False where the system has no way to (the peak is then the process's)."""
    with suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")
        return True
    return False


def peak_bytes() -> int:
    """The peak, in bytes; 0 where the system does not tell."""
    if peak := _status("VmHWM"):
        return peak
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def own_bytes() -> int:
    """Resident bytes that are this process's own, without mapped files; 0 where the system does not tell."""
    return _status("RssAnon")


def resident_bytes() -> int:
    """Resident bytes, mapped files included; 0 where the system does not tell."""
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hooks unannotated
    """Counts the bytes of storages that come to life inside the context, and the most that were alive together."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._see((args, kwargs), new=False)
        result = func(*args, **(kwargs or {}))
        self._see(result, new=True)
        return result

    def _see(self, tree: Any, *, new: bool) -> None:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._known:
                storage = leaf.untyped_storage()
                name, size = storage._cdata, storage.nbytes() if new else 0
                self._known[name] = weakref.ref(storage, partial(self._gone, name, size))
                self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, name: int, size: int, _: object) -> None:
        self._known.pop(name, None)
        self.live -= size


def tensor_bytes(call: Callable[[], object]) -> int:
    """Most bytes that tensors made during `call` held at once; a library's own buffers inside a kernel are not seen."""
    tracker = _LiveBytes()
    with tracker:
        call()
    return tracker.peak
