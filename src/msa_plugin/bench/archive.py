"""Small text files in one compressed file, which `tar xf` opens as well; the same files give the same bytes."""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path

from msa_plugin.errors import ConfigError


def write(path: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` (name -> content), in the order given, without dates or owners."""
    with tarfile.open(path, "w:xz", format=tarfile.PAX_FORMAT, preset=6) as archive:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))


def read(path: Path) -> dict[str, bytes]:
    """What `write` wrote; nothing where there is no file. Raises ConfigError for one that is damaged."""
    if not path.exists():
        return {}
    try:
        data = lzma.decompress(path.read_bytes())  # to its end, where its checksum stands
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            members = [(member.name, archive.extractfile(member)) for member in archive if member.isfile()]
            return {name: file.read() for name, file in members if file is not None}
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError) as error:
        raise ConfigError(f"{path.name} cannot be unpacked ({error}); restore the file or remove it") from error
