"""Where a number comes from: versions, hardware, commit and command, without the paths of the machine."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = (
    *("msa-plugin", "torch", "transformers", "numpy", "faiss-cpu", "bm25s", "sentence-transformers"),
    *("ir-measures", "pytrec-eval-terrier", "scipy"),
)
_URL = re.compile(r"https?://[^\s,]+")
_ABSOLUTE = re.compile(r"(?:(?<=^)|(?<=[=:,]))(?:/|[A-Za-z]:\\)[^,:=]*")


@dataclass(frozen=True)
class Provenance:
    """What stands beside every measurement."""

    versions: Mapping[str, str]
    hardware: str
    commit: str
    command: str

    @classmethod
    def here(cls, command: str | None = None) -> Provenance:
        """Of this process; `command` replaces its own command line."""
        return cls(versions(), hardware(), commit(), command_line(sys.argv) if command is None else command)


def now() -> str:
    """The present moment in UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Python and those of the packages that matter here which are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@cache
def hardware() -> str:
    """CPU model, cores that this process may use, memory, and the accelerator if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [_cpu(), f"{cores} of {os.cpu_count()} cores", _memory(), _gpu()]
    return ", ".join(part for part in parts if part)


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    with suppress(ValueError, OSError, AttributeError):  # names that this system's sysconf does not know
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB RAM"
    return ""


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


@cache
def commit() -> str:
    """The checkout's commit, with "+dirty" when tracked files differ from it; empty outside of a checkout."""
    here = Path(__file__)
    if _git(here, "ls-files", "--error-unmatch", here.name) is None:
        return ""  # installed into an environment that happens to lie in somebody's checkout
    head = _git(here, "rev-parse", "HEAD") or ""
    changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    return head[:12] + ("+dirty" if changed else "")


def _git(file: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(file.parent), *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def command_line(argv: Sequence[str]) -> str:
    """The command as it could be typed again elsewhere: absolute paths shortened, addresses left out."""
    words = [Path(argv[0]).name if argv else ""]
    words += [_ABSOLUTE.sub(lambda m: _shortened(m.group()), _URL.sub("URL", word)) for word in argv[1:]]
    return shlex.join(words)


def _shortened(path: str) -> str:
    absolute = Path(path)
    with suppress(ValueError, OSError):
        return str(absolute.relative_to(Path.cwd()))
    return absolute.name or path
