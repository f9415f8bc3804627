"""Files to be read, and reading one of them."""

import json

from msa_plugin.ingest import read_paths
from msa_plugin.types import Document


def one(path, **options):
    (document,) = read_paths([path], **options)
    return Document.of(document)  # what comes out can always be stored


def skipped(*paths, **options):
    """Ids of what was read, and what was left out and why."""
    skips = []
    return [d.id for d in read_paths(paths, on_skip=lambda *skip: skips.append(skip), **options)], skips


def about(path, **metadata):
    """The metadata of a document of `path`."""
    return {"source": str(path), "msa_file": path.resolve().as_posix(), **metadata}


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)
