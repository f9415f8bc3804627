"""JSON lines, as BEIR writes them: one record a line, of which malformed ones are left out by themselves."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from msa_plugin.ingest.decoding import Decoder
from msa_plugin.types import Period

_LOG = logging.getLogger("msa_plugin.ingest")


@dataclass(frozen=True)
class Piece:
    """What becomes a document: `given` is an id that it brings along, `line` where it stood in JSON lines.

    `consumed` are the bytes of its file that have been read for it and for those before it, of JSON lines characters.
    `period` are those of `valid_from`, `valid_until` and `replaces` that it has.
    """

    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    given: str = ""
    line: int = 0
    consumed: int = 0
    period: Mapping[str, Any] = field(default_factory=dict)


def records(stream: IO[bytes], source: str, decoder: Decoder, on_bad: Callable[[int, str], None]) -> Iterator[Piece]:
    """Records of a file; `on_bad(line, reason)` is told of malformed and empty ones."""
    empty, consumed = True, 0
    for number, line in decoder.lines(stream):
        consumed += len(line) + 1
        if not line.strip():
            continue
        empty = False
        try:
            record = _record(line, number, consumed, source, decoder)
        except ValueError as error:
            on_bad(number, f"{error}; correct the line or take it out")
            continue
        if record.text.strip():
            yield record
        else:
            on_bad(number, "empty: no text in this record")
    if empty:
        on_bad(0, "empty: no text in it")


def _record(line: str, number: int, consumed: int, source: str, decoder: Decoder) -> Piece:
    fields = _json_object(line)
    ids = [fields.pop(name) for name in ("_id", "id") if fields.get(name) is not None][:1]
    period = {name: fields.pop(name) for name in Period._fields if fields.get(name) is not None}
    text, title, own = fields.pop("text", None), fields.pop("title", None), fields.pop("metadata", None)
    if not isinstance(text, str):
        raise ValueError("the record needs a 'text' that is a string")
    if not isinstance(title, (str, type(None))) or not isinstance(own, (dict, type(None))):
        raise ValueError("'title' must be a string and 'metadata' an object")
    metadata = {**fields, **(own or {})}
    lost = [name for name in fields if metadata[name] != fields[name]]
    if lost:
        _LOG.warning("%s, line %d: fields %s give way to those in 'metadata'", source, number, lost)
    given = _record_id(ids[0]) if ids else ""
    return Piece(decoder.clean(text), decoder.clean(title or ""), metadata, given, number, consumed, period)


def _json_object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line, strict=False, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at character {error.colno})") from error
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def _record_id(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise ValueError("the id must be a non-empty string or a whole number")
    return value
