"""A small copy of a run folder, to be kept for good: its tables can be made again, but it holds no text of a data set.

Rows and configuration are copied; rankings and what happened to each question are packed. The texts of questions and
the queries of later rounds, which contain passages, are left out, and rankings that the TREC runs hold already.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msa_plugin.bench import jsonl
from msa_plugin.errors import ConfigError

_TEXTS = frozenset({"text", "queries"})


def pack(out: Path, into: Path) -> Path:
    """Write the copy of `out` into the folder `into`, which must be absent or empty; returns `into`.

    The same run gives the same bytes; files that are packed already are copied. Raises ConfigError for a folder that
    holds something or files that are damaged.
    """
    if into.exists() and any(into.iterdir()):
        raise ConfigError(f"{into.name} holds something already; give an empty folder to pack {out.name} into")
    if not (out / "results.jsonl").is_file():
        raise ConfigError(f"{out.name} holds no results.jsonl to pack")
    into.mkdir(parents=True, exist_ok=True)
    for name in ("results.jsonl", "config.json"):
        if (out / name).exists():
            (into / name).write_bytes((out / name).read_bytes())
    for path in sorted((out / "runs").glob("*.trec")):
        _write(into / "runs" / path.name, path.read_bytes())
    for path in sorted((out / "questions").glob("*.jsonl")):
        ranked = path.name.startswith("retrieval.") and (out / "runs" / _run_of(path)).exists()
        left_out = _TEXTS | {"ranking"} if ranked else _TEXTS
        records = (_without(record, left_out) for record in jsonl.read(path).records)
        _write(into / "questions" / path.name, jsonl.text_of(path, records).encode("utf-8", "backslashreplace"))
    for kind in ("runs", "questions"):  # what was packed before holds no text any more
        for path in sorted((out / kind).glob("*.gz")):
            (into / kind).mkdir(exist_ok=True)
            (into / kind / path.name).write_bytes(path.read_bytes())
    return into


def _run_of(questions: Path) -> str:
    """The run that holds the rankings of a file of questions (names as in `store`)."""
    return questions.name.removeprefix("retrieval.").removesuffix(".jsonl") + ".trec"


def _without(record: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data, mtime=0))
