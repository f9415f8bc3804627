"""Judgements of a data set: which passages are relevant to which question, from tab-separated files."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from msa_plugin.errors import IngestError

SPLITS = ("test", "dev", "train")
SHOWN = 3  # ids named in a note
_HEADER = re.compile(r"[A-Za-z][\w -]*")
MAX_LINE = 1 << 26  # bytes; a small packed file can hold a line of any length


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a file, packed or not, with their numbers. Raises IngestError for what cannot be read."""
    number = 0
    try:
        with path.open("rb") as file, gzip.open(file) if path.suffix == ".gz" else file as plain:
            for number, raw in enumerate(iter(lambda: plain.readline(MAX_LINE + 1), b""), start=1):
                if len(raw) > MAX_LINE:
                    raise IngestError(f"{path}, line {number} is over {MAX_LINE} bytes; use shorter lines")
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise IngestError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise IngestError(f"{path}, after line {number}: cannot be read ({error})") from error


def note(notes: list[str], items: list[str], what: str) -> None:
    """Say how many `items` there are of a kind, and name the first."""
    if items:
        more = ", ..." if len(items) > SHOWN else ""
        notes.append(f"{len(items)} {what} ({', '.join(items[:SHOWN])}{more})")


def qrels(folder: Path, questions: set[str], notes: list[str]) -> dict[str, dict[str, int]] | None:
    """Grades above 0 of the chosen split, by question; None when the folder has no qrels. Raises IngestError."""
    files = {
        path.name.split(".tsv")[0]: path
        for ending in (".tsv.gz", ".tsv")
        for path in (folder / "qrels").glob(f"*{ending}")
    }
    if not files:
        return None
    split = next((name for name in SPLITS if name in files), min(files))
    if len(files) > 1:
        notes.append(f"the split is {split!r} of {', '.join(sorted(files))}")
    grades: dict[tuple[str, str], int] = {}
    between = []
    for number, line in lines(files[split]):
        where, columns = f"{files[split]}, line {number}", _columns(line)
        if not line.strip() or (number == 1 and len(columns) == 3 and _HEADER.fullmatch(columns[2].strip())):
            continue
        grade = _grade(columns[2]) if len(columns) == 3 else None
        if grade is None:
            raise IngestError(
                f"{where}: query-id, corpus-id and a grade, separated by tabs, were expected (or TREC's four columns)"
            )
        pair = (columns[0], columns[1])
        between += [] if float(columns[2]) == grade else [f"{pair[0]}: {pair[1]}"]
        if grades.setdefault(pair, grade) != grade:
            raise IngestError(f"{where}: {pair[0]!r} and {pair[1]!r} were graded otherwise before")
    note(notes, between, "grades between two whole numbers were rounded up")
    strangers = sorted({question for question, _ in grades} - questions)
    note(notes, strangers, "judged questions are missing in the queries and were left out")
    judged: dict[str, dict[str, int]] = {}
    for (question, passage), grade in grades.items():
        if grade > 0:
            judged.setdefault(question, {})[passage] = grade
    return judged


def _columns(line: str) -> list[str]:
    """Question, passage and grade of a line; TREC's files have a column more, and often blanks instead of tabs."""
    columns = line.rstrip("\r\n").split("\t")
    if len(columns) == 1 and len(line.split()) == 4:
        columns = line.split()
    return [columns[0], *columns[2:]] if len(columns) == 4 else columns


def _grade(text: str) -> int | None:
    """A grade as the measures take it: whole, a fraction rounded up, so that what is relevant stays so."""
    try:
        grade = float(text)
    except ValueError:
        return None
    return math.ceil(grade) if abs(grade) < 1e9 else None
