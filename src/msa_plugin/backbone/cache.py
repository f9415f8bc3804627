"""The folder in which things are kept between runs that can be made again, and what is said when it cannot be used."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

from msa_plugin.errors import DiskError

VARIABLE = "MSA_CACHE"


def cache_dir() -> Path:
    """Where converted weights are kept: MSA_CACHE if set, else the user's cache directory."""
    return _anchored(os.environ.get(VARIABLE) or str(user_cache_path("msa-plugin")))


@cache
def _anchored(name: str) -> Path:
    """The folder that a name led to at first: a relative one stays there whatever the working directory becomes."""
    return Path(name).resolve()


def is_kept(file: Path) -> bool:
    """Whether `file` is there; False, too, where it may not be looked for."""
    try:
        return file.is_file()
    except OSError:
        return False


def refused(error: OSError, path: Path | None = None) -> DiskError:
    """The operating system's refusal of a file (of `path` where the error names none), in our words."""
    file = str(error.filename or path or "a file")
    inside = Path(file).is_relative_to(cache_dir())
    hint = f"; {VARIABLE} names another folder for what is kept between runs" if inside else ""
    return DiskError(f"{file}: {error.strerror or error}; check its permissions and the free space{hint}")
