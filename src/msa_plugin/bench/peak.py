"""The most memory that this process had resident since it was last asked to forget."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

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
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
