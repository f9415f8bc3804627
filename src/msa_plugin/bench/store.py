"""The folder of a run: rows, rankings and replies, written so that a run can die at any moment and go on later.

    OUT/config.json                                what was run, by part, and the data sets it ran on
    OUT/results.jsonl                              one measurement a line
    OUT/runs/<dataset>.<system>.trec               rankings as TREC tools read them
    OUT/questions/<part>.<dataset>.<system>.jsonl  what happened to each question
    OUT/questions.tar.xz                           the same of a packed run, in short (tools/bench/pack_run.py)

Names are percent-encoded in file names.
"""

from __future__ import annotations

import json
import lzma
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, unquote

import numpy as np
from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from msa_plugin.bench.result import ResultRow, Scored
from msa_plugin.config import GenerationConfig, MemoryConfig, problems
from msa_plugin.data import jsonl
from msa_plugin.errors import ConfigError
from msa_plugin.measuring.provenance import Provenance, now

Key: TypeAlias = tuple[str, str, str, Mapping[str, Any]]  # part, dataset, system, settings
SKIPPED = "skipped"  # a metric: the system did not run; settings["reason"] says why
PACKED = "questions.tar.xz"
NOTE = "note"  # a metric: settings["reason"] is something that a reader of the results must know
_FIELDS = {f.name for f in fields(ResultRow)}
_ROWS = TypeAdapter(list[ResultRow])
_CONFIG = TypeAdapter(dict[str, dict[str, dict[str, Any]]])


class Results:
    """Results of one run folder. Reading needs no lock; the first write takes one until `close`."""

    def __init__(self, out: Path, *, seed: int = 0, command: str | None = None) -> None:
        """`seed` and `command` (this process's command line if None) go into every row that is added."""
        self.out, self.seed, self._command = Path(out).resolve(), seed, command
        self._lock = FileLock(str(self.out / ".lock"))
        self._loaded: list[ResultRow] | None = None

    @property
    def path(self) -> Path:
        """The file of rows."""
        return self.out / "results.jsonl"

    # Rows

    def rows(self) -> list[ResultRow]:
        """The rows that hold: of several for one measurement the last, and no skips of systems that ran after all."""
        latest: dict[tuple[str, ...], ResultRow] = {}
        for row in self._load():
            skip = (row.part, row.dataset, row.system, SKIPPED)  # one for each system, whatever its reason was
            name = skip if row.metric == SKIPPED else (key_of(row), row.metric)
            latest.pop(name, None)  # the order is that of the last writing
            latest[name] = row
            if row.metric not in (SKIPPED, NOTE):
                latest.pop(skip, None)
        return list(latest.values())

    def has(self, key: Key) -> bool:
        """Whether a measurement was stored for (part, dataset, system, settings), whatever its metric."""
        wanted = _name(*key)
        rows = (r for r in self._load() if r.metric not in (SKIPPED, NOTE))
        return any(key_of(row) == wanted for row in rows)

    def add(self, rows: Iterable[ResultRow]) -> None:
        """Store rows, stamped with this run's provenance and the date; on the disk when it returns."""
        kept = list(rows)
        if not kept:
            return
        stamped = [replace(row, seed=self.seed, date=now(), **vars(self._here)) for row in kept]
        self.claim()
        self.rewrite([*self._load(), *stamped])

    def put(self, rows: Iterable[ResultRow]) -> None:
        """`add` those rows that are new or say something else than the stored ones."""
        self.claim()
        known = {_measured(row) for row in self.rows()}
        self.add([row for row in rows if _measured(row) not in known])

    def skip(self, part: str, dataset: str, system: str, reason: str) -> None:
        """Record that a system (or, with system "", a whole data set) did not run, and why."""
        self.add([ResultRow(part, dataset, system, SKIPPED, 0.0, settings={"reason": reason})])

    def note(self, part: str, dataset: str, reason: str) -> None:
        """Record something that a reader of the results must know; once, however often it is said."""
        self.put([ResultRow(part, dataset, "", NOTE, 0.0, settings={"reason": reason})])

    def rewrite(self, rows: Iterable[ResultRow]) -> None:
        """Replace all rows by these, as they are: stamps stay."""
        self.claim()
        kept = list(rows)
        jsonl.write_atomic(self.path, jsonl.text_of(self.path, (row.to_dict() for row in kept)))
        self._loaded = kept

    @cached_property
    def _here(self) -> Provenance:
        return Provenance.here(self._command)

    def _load(self) -> list[ResultRow]:
        if self._loaded is None:
            found = [{n: v for n, v in one.items() if n in _FIELDS} for one in jsonl.read(self.path)]
            try:
                self._loaded = _ROWS.validate_python(found)
            except ValidationError as error:
                raise ConfigError(f"{self.path.name} holds a line that is not a result ({problems(error)})") from error
        return self._loaded

    # What was run

    def config(self) -> dict[str, Any]:
        """The content of config.json; empty when there is none."""
        path = self.out / "config.json"
        if not path.exists():
            return {}
        try:
            return _CONFIG.validate_python(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, OSError, RecursionError) as error:
            told = problems(error) if isinstance(error, ValidationError) else error
            raise ConfigError(
                f"config.json of {self.out.name} is not what a run writes ({told}); use another --out"
            ) from error

    def configure(self, part: str, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Save what `part` is run with; a later run in this folder has to be the same, or `fresh`.

        Raises ConfigError naming what differs, and for a packed folder. `fresh` removes what the folder holds of this
        part; caches stay.
        """
        if (self.out / PACKED).exists():
            raise ConfigError(f"{self.out.name} is a packed run, from which reports are made; give another --out")
        wanted = json.loads(json.dumps(settings, default=str))
        saved = self.config()
        before = saved.get("parts", {}).get(part)
        if fresh:
            self.remove(part)
        elif before is not None and (changes := list(_changes(_today(before), wanted))):
            raise ConfigError(
                f"{self.out.name} holds results of another configuration ({'; '.join(changes)}); "
                "give another --out, or --fresh to start over"
            )
        self._save({**saved, "parts": {**saved.get("parts", {}), part: wanted}})

    def describe(self, dataset: str, facts: Mapping[str, Any]) -> None:
        """Save facts about a data set; its "hash" must not change. Raises ConfigError when it did."""
        saved = self.config()
        known = saved.get("datasets", {})
        before = known.get(dataset, {})
        if before.get("hash", facts.get("hash")) != facts.get("hash"):
            raise ConfigError(
                f"the data set {dataset!r} is not the one that {self.out.name} holds results of; give another --out"
            )
        self._save({**saved, "datasets": {**known, dataset: {**before, **facts}}})

    def dataset_facts(self, dataset: str) -> dict[str, Any]:
        """What `describe` saved."""
        facts: dict[str, Any] = self.config().get("datasets", {}).get(dataset, {})
        return facts

    def remove(self, part: str) -> None:
        """Forget the rows and question files of a part; of retrieval also the rankings."""
        self.claim()
        self.rewrite([row for row in self._load() if row.part != part])
        for path in (self.out / "questions").glob(f"{_safe(part)}.*.jsonl"):
            path.unlink()
        if part == "retrieval":
            for path in (self.out / "runs").glob("*.trec"):
                path.unlink()

    def _save(self, config: Mapping[str, Any]) -> None:
        self.claim()
        jsonl.write_atomic(self.out / "config.json", json.dumps(config, ensure_ascii=False, indent=1) + "\n")

    # Questions and rankings

    def question_file(self, part: str, dataset: str, system: str) -> Path:
        """Where `add_questions` writes."""
        return self.out / "questions" / f"{_safe(part)}.{_safe(dataset)}.{_safe(system)}.jsonl"

    def add_questions(self, part: str, dataset: str, system: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Append what happened to questions; on the disk when it returns."""
        self.claim()
        jsonl.append(self.question_file(part, dataset, system), records)

    def questions(self, part: str, dataset: str, system: str) -> list[dict[str, Any]]:
        """All whole records, in the order written; none when there is no file."""
        path = self.question_file(part, dataset, system)
        return jsonl.read(path, None if path.exists() else self._packed.get(path.name, b""))

    def question_sets(self, part: str) -> list[tuple[str, str]]:
        """(dataset, system) of every question file of a part."""
        written = [path.name for path in (self.out / "questions").glob("*.jsonl")]
        files = sorted(name for name in {*written, *self._packed} if name.count(".") == 3)  # those in names are encoded
        return [(dataset, system) for of, dataset, system in map(self.names_of, files) if of == part]

    @staticmethod
    def names_of(file: str) -> tuple[str, str, str]:
        """Part, data set and system of a file that `question_file` names."""
        part, dataset, system, _ = map(unquote, file.split("."))
        return part, dataset, system

    @cached_property
    def _packed(self) -> dict[str, bytes]:
        return unpacked(self.out / PACKED)

    def write_run(self, dataset: str, system: str, rankings: Mapping[str, Sequence[Scored]]) -> Path:
        """Write rankings (question id -> best first) for TREC tools, all or nothing; returns the file.

        These tools sort by score in single precision and ignore ranks, so scores that tie there, or that do not fall,
        are lowered by the least amount that keeps the system's own order.
        """
        self.claim()
        tag = _token(system)
        lines = []
        for question, ranking in rankings.items():
            scores = _falling([s.score for s in ranking])
            for rank, (hit, score) in enumerate(zip(ranking, scores, strict=True), start=1):
                lines.append(f"{_token(question)} Q0 {_token(hit.id)} {rank} {score:.9g} {tag}\n")
        path = self.out / "runs" / f"{_safe(dataset)}.{_safe(system)}.trec"
        jsonl.write_atomic(path, "".join(lines))
        return path

    # One writer

    def claim(self) -> None:
        """Be the one that writes here; every write is. Raises ConfigError when another process is."""
        self.out.mkdir(parents=True, exist_ok=True)
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(
                f"another process is writing to {self.out.name}; wait for it or use another --out"
            ) from error
        self._loaded = None  # somebody else may have written since it was read

    def close(self) -> None:
        """Let others write."""
        self._lock.release()

    def __enter__(self) -> Results:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def unpacked(path: Path) -> dict[str, bytes]:
    """The files of a packed run; none where there is no such file. Raises ConfigError for one that is damaged."""
    if not path.exists():
        return {}
    try:
        data = lzma.decompress(path.read_bytes())  # to its end, where its checksum stands
        with tarfile.open(fileobj=BytesIO(data), mode="r:") as archive:
            members = [(member.name, archive.extractfile(member)) for member in archive if member.isfile()]
            return {name: file.read() for name, file in members if file is not None}
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError) as error:
        raise ConfigError(f"{path.name} cannot be unpacked ({error}); restore the file or remove it") from error


def _falling(scores: Sequence[float]) -> list[float]:
    """The scores in single precision, lowered where needed so that each is below the one before."""
    given = np.asarray(scores, dtype=np.float32)
    for i in range(1, len(given)):
        if not given[i] < given[i - 1]:
            given[i] = np.nextafter(given[i - 1], np.float32(-np.inf))
    return [float(score) for score in given]


def _today(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings with the options that came later, as they were then: off, or of no matter to what is measured."""
    # Answers did not end with a repetition then; what is measured writes few tokens, of which that is no matter.
    then = {
        "memory": MemoryConfig(lexical=0.0, titles=0.0, mentions=0.0, reader="stock", abstain_below=0.0),
        "generation": GenerationConfig(),
    }
    known = {name: given for name in then if isinstance(given := settings.get(name), Mapping)}
    return {**settings, **{name: {**then[name].model_dump(mode="json"), **given} for name, given in known.items()}}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """What differs, option by option."""
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{within}{name}.")
        elif old != new:
            yield f"{within}{name}: {old!r} then, {new!r} now"


def _name(part: str, dataset: str, system: str, settings: Mapping[str, Any]) -> str:
    return json.dumps([part, dataset, system, dict(settings)], sort_keys=True, default=str)


def key_of(row: ResultRow) -> str:
    """Its part, data set, system and settings in one text."""
    return _name(row.part, row.dataset, row.system, row.settings)


def _measured(row: ResultRow) -> str:
    numbers = [row.metric, row.value, row.low, row.high, row.n, row.documents, row.tokens]
    return json.dumps([key_of(row), *numbers])


def _safe(name: str) -> str:
    """A name that may be part of a file name, between dots."""
    return quote(name, safe="+").replace(".", "%2E")


def _token(name: str) -> str:
    """A name without blanks, as TREC's columns need it."""
    return re.sub(r"[\s%]", lambda m: quote(m.group()), name)
