"""The small file that makes a folder a cluster: how many shards, of what, and which order numbers were handed out.

Each shard is an ordinary bank in a subfolder. Documents go to the shard that a hash of namespace and id names, so an
update or a deletion concerns one shard and is one transaction there. A document's ordinal is its number in the whole
cluster. Numbers are reserved here, durably, before anything is written with them: whatever becomes of a write, no
number is given out twice.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from msa_plugin.bank.disk import disk_errors, fsync_folder, make_folder, replace_text
from msa_plugin.bank.schema import CATALOG_FILE, CLUSTER_FILE
from msa_plugin.errors import BankCorruptError, BankFormatError, ClusterError
from msa_plugin.types import Fingerprint

_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What the file says. `ready` once every shard's bank was made; `next_ordinal` was given to no document yet."""

    shards: int
    fingerprint: Fingerprint
    next_ordinal: int = 1
    ready: bool = False

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest in `folder`, if there is one. Raises BankFormatError and BankCorruptError."""
        path = folder / CLUSTER_FILE
        if not path.is_file():
            return None
        with disk_errors(folder, reading=True):
            text = path.read_text(encoding="utf-8")
        try:
            found = json.loads(text)
            number = found.pop("format_version")
            if number != _FORMAT:
                raise BankFormatError(
                    f"{path}: format version {number!r}, this package reads {_FORMAT}; use the version that wrote it"
                )
            manifest = cls(**{**found, "fingerprint": Fingerprint(**found["fingerprint"])})
            if not (isinstance(manifest.shards, int) and manifest.shards > 0 and manifest.next_ordinal > 0):
                raise ValueError("numbers out of range")
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, BankFormatError):
                raise
            raise BankCorruptError(f"{path} is damaged ({error}); restore it from a backup") from error
        return manifest

    def write(self, folder: Path) -> Manifest:
        """Put it into `folder`, durably and all at once; returns itself. The caller is the only writer."""
        with disk_errors(folder):
            make_folder(folder)
            text = json.dumps({"format_version": _FORMAT, **asdict(self)}, indent=1)
            replace_text(folder / CLUSTER_FILE, text, durable=True)
            fsync_folder(folder)
        return self

    def check(self, folder: Path, shards: int | None, fingerprint: Fingerprint) -> None:
        """Raises ClusterError for another number of shards, FingerprintMismatchError for another model."""
        if shards not in (None, self.shards):
            raise ClusterError(
                f"{folder} has {self.shards} shards and {shards} were asked for; open it with cluster={self.shards}, "
                "or add its documents to a new cluster in another folder"
            )
        fingerprint.check(self.fingerprint, folder)


def check_cluster(folder: Path) -> None:
    """Raises ClusterError where `folder` is a plain bank."""
    if (folder / CATALOG_FILE).exists():
        raise ClusterError(
            f"{folder} is a plain bank; open it without cluster=, or add its documents to a cluster in another folder"
        )


def check_plain(folder: Path, *, read_only: bool) -> None:
    """Raises ClusterError where `folder` is a cluster, or one of its shards and is to be written to."""
    if (folder / CLUSTER_FILE).exists():
        manifest = Manifest.read(folder)
        shards = manifest.shards if manifest else 0
        raise ClusterError(f"{folder} is a cluster of {shards} shards; open it with cluster={shards}")
    if not read_only and (folder.parent / CLUSTER_FILE).exists() and (folder / CATALOG_FILE).exists():
        raise ClusterError(
            f"{folder} is a shard of the cluster {folder.parent}; open that with cluster=, or this with read_only=True"
        )


def shard_folder(folder: Path, shard: int) -> Path:
    """Where the bank of a shard lies."""
    return folder / f"shard-{shard:04}"


def home(namespace: str, name: str, shards: int) -> int:
    """The shard of the document `name`: the same on every machine, for good."""
    key = f"{len(namespace)}:{namespace}:{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % shards
