"""Hostile inputs made of valid ones: bytes, JSON and safetensors, changed at random but repeatably."""

from __future__ import annotations

import copy
import json
import string
from random import Random
from typing import Any

BYTES = (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xff\xfe\0\0", b"\r\n", b"\x85", b"\xed\xa0\x80", b"\xf4\x90\x80\x80")
TEXTS = (b'"', b"{", b"[" * 3000, b"9" * 5000, b"1e999", b"NaN", b"&#" + b"9" * 5000 + b";", b"<![x[", b"<!--", b"\t")
ESCAPES = ("../../outside", "../outside/model.safetensors", "/etc/hostname", "..", "a\0b", "")
KEYS = ("self", "__class__", "name", "id", "_id", "data", "../x", "\ud800", "0")
LONG = "9" * 4000  # Python refuses to turn more than 4300 digits into a number


def hostile_value(rng: Random, depth: int = 0) -> Any:
    """Something that the reader of a field does not expect."""
    simple: list[Any] = [None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**64, 10**30, int(LONG), 0.5, -0.0, 1e308]
    simple += [float("nan"), float("inf"), "", "x", "0", "all", "x" * 2000, "\ud800", "\u202e", *ESCAPES, [], {}]
    if depth < 3 and rng.random() < 0.2:
        inner = hostile_value(rng, depth + 1)
        return rng.choice([[inner], {rng.choice(KEYS): inner}, [inner] * 20])
    if rng.random() < 0.03:
        nested: Any = []
        for _ in range(rng.choice((50, 400, 900))):
            nested = [nested]
        return nested
    return rng.choice(simple)


def mutate_bytes(rng: Random, data: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """`data` with one to four changes; sometimes random bytes alone."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.choice((0, 1, 8, 300)))
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1)
        size = min(rng.choice((1, 2, 8, 64)), len(found) - at)
        change = rng.randrange(6)
        if change == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            del found[at : at + size]
        elif change == 2:
            found[at:at] = found[at : at + size] * rng.choice((1, 2, 50))
        elif change == 3:
            found[at:at] = rng.choice((*BYTES, *TEXTS, *others))
        elif change == 4:
            del found[at:]
        else:
            found[at : at + size] = rng.randbytes(size)
    return bytes(found)


def mutate_json(rng: Random, value: Any, changes: int | None = None) -> Any:
    """A copy of `value` with some of its parts replaced, removed, renamed or repeated."""
    found = copy.deepcopy(value)
    for _ in range(changes or rng.randint(1, 3)):
        place, key = _anywhere(rng, found)
        if place is None:
            return hostile_value(rng)
        change = rng.randrange(6)
        if change == 0:
            del place[key]
        elif change == 1 and isinstance(place, dict):
            place[rng.choice((*KEYS, rng.choice(string.ascii_letters)))] = place.pop(key)
        elif change == 2 and isinstance(place, list):
            place.append(place[key])
        else:
            place[key] = hostile_value(rng)
    return found


def _anywhere(rng: Random, value: Any) -> tuple[Any, Any]:
    """A container inside `value` and one of its keys, or (None, None) where there is none."""
    place, key = None, None
    while isinstance(value, dict | list) and value and (place is None or rng.random() < 0.7):
        place, key = value, rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        value = value[key]
    return place, key


def json_bytes(rng: Random, value: Any) -> bytes:
    """`value` as JSON, now and then with something that JSON does not allow."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8)
    if rng.random() < 0.1:
        text = text.replace("null", rng.choice(("[" * 100_000, "9" * 5000, "NaN", "-Infinity")), 1)
    return text.encode("utf-8", "surrogatepass")


def mutated_json(rng: Random, data: bytes) -> bytes:
    """A JSON file with its structure changed, or its bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data)
    return json_bytes(rng, mutate_json(rng, json.loads(data)))


def mutated_lines(rng: Random, data: bytes) -> bytes:
    """A JSON-lines file with the structure of one or two lines changed, or its bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, data)
    lines = data.splitlines()
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(lines))
        lines[at] = json_bytes(rng, mutate_json(rng, json.loads(data.splitlines()[at])))
    if rng.random() < 0.1:
        lines.append(rng.choice(lines))
    return b"\n".join(lines) + (b"\n" if rng.random() < 0.9 else b"")


def mutated_table(rng: Random, data: bytes, separator: bytes) -> bytes:
    """A table with one cell replaced, or its bytes changed."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, data)
    cells = [row.split(separator) for row in data.splitlines()]
    row = rng.choice(cells)
    row[rng.randrange(len(row))] = str(hostile_value(rng)).encode("utf-8", "replace") * rng.choice((1, 1, 2))
    return b"\n".join(separator.join(row) for row in cells)


def mutated_safetensors(rng: Random, data: bytes) -> bytes:
    """A safetensors file whose header, lengths or numbers lie."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    names = [n for n in header if n != "__metadata__"]
    if not names or rng.random() < 0.2:
        return mutate_bytes(rng, data)
    change, name = rng.randrange(5), rng.choice(names)
    if change == 0:
        header = mutate_json(rng, header)
    elif change == 1:
        header[name]["shape"] = rng.choice(([], [0], [2**62, 4], [-1], [1] * 70, [len(body)], [10**12, 0]))
    elif change == 2:
        header[name]["data_offsets"] = rng.choice(([0, 4], [0, 2**62], [2**63, 2**64 - 1], [8, 0], [0, len(body)]))
    elif change == 3:
        header[name]["dtype"] = rng.choice(("F16", "F8_E4M3", "BOOL", "I64", "U8", "X", "", "F4"))
    else:
        start, end = header[name]["data_offsets"]
        body[start:end] = b"\xff" * (end - start)  # NaN in every format
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    claimed = len(text) if rng.random() < 0.9 else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1))
    return claimed.to_bytes(8, "little") + text + bytes(body)
