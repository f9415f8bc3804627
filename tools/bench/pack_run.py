"""A small copy of a run folder, to be kept for good: its tables can be made again, but it holds no text of a data set.

    python tools/bench/pack_run.py OUT INTO

Rows and configuration are copied. What its rows need of each question goes into one file, `questions.tar.xz`: of a
ranking the places of the relevant passages, unless another system is compared with it. The texts of questions and the
queries of later rounds, which contain passages, are left out, as are the TREC runs; running again makes them.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msa_plugin.bench.scoring import exact_twin, ranked
from msa_plugin.bench.store import PACKED, Results
from msa_plugin.data import jsonl
from msa_plugin.errors import ConfigError, MSAError

_TEXTS = frozenset({"text", "queries"})
_UNUSED = frozenset({"seconds", "spent", "ranking"})  # of part "retrieval"; `wall` is what its rows need of time


def pack(out: Path, into: Path) -> Path:
    """Write the copy of `out` into the folder `into`, which must be absent or empty; returns `into`.

    The same run gives the same bytes; what is packed already is copied. Raises ConfigError for a folder that holds
    something or files that are damaged.
    """
    if into.exists() and any(into.iterdir()):
        raise ConfigError(f"{into.name} holds something already; give an empty folder to pack {out.name} into")
    if not (out / "results.jsonl").is_file():
        raise ConfigError(f"{out.name} holds no results.jsonl to pack")
    into.mkdir(parents=True, exist_ok=True)
    for name in ("results.jsonl", "config.json", PACKED):
        if (out / name).exists():
            (into / name).write_bytes((out / name).read_bytes())
    if files := {path.name: _packed(Results(out), path) for path in sorted((out / "questions").glob("*.jsonl"))}:
        write_archive(into / PACKED, files)
    return into


def _packed(results: Results, path: Path) -> bytes:
    """The lines of a file of questions, without what no row needs."""
    records: Iterable[Mapping[str, Any]] = jsonl.read(path)
    part, dataset, system = results.names_of(path.name)
    if part == "retrieval":
        systems = {name for of, name in results.question_sets(part) if of == dataset}
        compared = exact_twin(system) in systems or system in map(exact_twin, systems)
        records = _places(records, whole=compared)
    kept = ({name: value for name, value in record.items() if name not in _TEXTS} for record in records)
    return jsonl.text_of(path, kept).encode("utf-8", "backslashreplace")


def _places(records: Iterable[Mapping[str, Any]], *, whole: bool) -> Iterable[dict[str, Any]]:
    """Records with the place (from 1) of each relevant passage that was found, or with the `whole` ranking of ids."""
    for record in records:
        ids = ranked(record)
        found = {name: ids.index(name) + 1 for name in record["positives"] if name in ids}
        kept = {"ranking": [[name] for name in ids]} if whole else {"places": found}
        yield {**{name: value for name, value in record.items() if name not in _UNUSED}, **kept}


def write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    """`files` (name -> content), in the order given, without dates or owners: the same files give the same bytes."""
    with tarfile.open(path, "w:xz", format=tarfile.PAX_FORMAT, preset=6) as archive:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))


def main() -> None:
    """Pack the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of a run")
    parser.add_argument("into", type=Path, help="folder for the copy, absent or empty")
    try:
        pack(**vars(parser.parse_args()))
    except MSAError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
