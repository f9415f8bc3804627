"""Real manuals with questions about them: a data set that is put together from what is installed.

    python tools/manuals/collect.py FOLDER

`documents.jsonl` names each document: the file of a package (`METADATA`: the long description of a wheel), its version,
the hash of its bytes and its licence. `questions.jsonl` holds our own questions, each with the document that answers it
and what counts as right, or with neither where no document says it. None of the texts is part of this repository.

FOLDER gets `files/` as a user would add them, and the layout that `msa bench` reads: `corpus.jsonl`, `queries.jsonl`.
What is not installed here, or not in the version that the questions were written for, is left out with a reason, and
so are questions about it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from msa_plugin.ingest import read_paths

HERE = Path(__file__).parent
SYSTEM = "debian:"  # packages of the system, whose files have absolute paths


class LeftOutError(Exception):
    """A document cannot be had here; the message says why."""


@dataclass
class Collected:
    """What is there: documents with their questions, and for each document that is not, why."""

    documents: list[dict[str, str]] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line a document that was left out, then the numbers."""
        lines = [f"left out: {name}: {why}" for name, why in self.left_out.items()]
        without = sum(not q["positive_ids"] for q in self.questions)
        of = f"{len(self.documents)} of {len(self.documents) + len(self.left_out)} documents"
        return "\n".join([*lines, f"{of}, {len(self.questions)} questions, {without} of them without an answer"])


def listed(name: str) -> list[dict[str, Any]]:
    """The lines of documents.jsonl or questions.jsonl."""
    return [json.loads(line) for line in (HERE / f"{name}.jsonl").read_text("utf-8").splitlines()]


def content(document: dict[str, Any]) -> bytes:
    """The bytes of a listed document. Raises LeftOutError where they are not here, or are others."""
    package, wanted = document["package"], document["version"]
    if package.startswith(SYSTEM):
        path = Path(document["file"])
        if not path.is_file():
            raise LeftOutError(f"{path.name} of {package.removeprefix(SYSTEM)} is not installed")
    else:
        path = _of_wheel(package, wanted, document["file"])
    raw = path.read_bytes()
    if document["file"] == "METADATA":
        raw = re.split(rb"\r?\n\r?\n", raw, maxsplit=1)[-1]
    if hashlib.sha256(raw).hexdigest() != document["sha256"]:
        raise LeftOutError(f"it is not the one of {package} {wanted} that the questions were written for")
    return raw


def _of_wheel(package: str, wanted: str, name: str) -> Path:
    try:
        found = distribution(package)
    except PackageNotFoundError:
        raise LeftOutError(f"{package} is not installed") from None
    if found.version != wanted:
        raise LeftOutError(f"{package} is installed in version {found.version}, not {wanted}")
    inside = [f for f in found.files or () if str(f) == name or (f.name == name and f.parent.suffix == ".dist-info")]
    if not inside:
        raise LeftOutError(f"{package} has no file {name}")
    return Path(str(found.locate_file(inside[0])))


def tried(document: dict[str, Any]) -> tuple[bytes, str]:
    """The bytes of a listed document, or none and the reason."""
    try:
        return content(document), ""
    except LeftOutError as error:
        return b"", str(error)


def collect(folder: Path) -> Collected:
    """Write the data set into `folder`, in place of one that is there; says what it holds."""
    files = folder / "files"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    found = Collected()
    for document in listed("documents"):
        raw, why = tried(document)
        if why:
            found.left_out[document["id"]] = why
        else:
            (files / document["id"]).write_bytes(raw)
    found.documents = [{"id": d.id, "title": d.title, "text": d.text} for d in read_paths(files)]
    known = {d["id"] for d in found.documents}
    found.questions = [q for q in listed("questions") if set(q["positive_ids"]) <= known]
    for name, rows in (("corpus", found.documents), ("queries", found.questions)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Put the manuals that are installed here together as a data set.")
    parser.add_argument("folder", type=Path)
    sys.stdout.write(f"{collect(parser.parse_args().folder)}\n")
