"""Memory that this process has resident, and the most that it had since it was last asked to forget."""

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
