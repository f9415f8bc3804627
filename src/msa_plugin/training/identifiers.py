"""Answers turned into names that programs use: `--no-cache`, `max_retries`, `/etc/mill.conf`.

Training sets ask for people, places and dates; manuals answer with flags, functions and paths, which must be copied to
the letter. A passage whose answer was replaced by such a name teaches that, and its other names have to be told apart.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from msa_plugin.training.dressing import CutPassage

Coded: TypeAlias = tuple[list[CutPassage], str]
_WORD = re.compile(r"\b[a-z]{3,9}\b")
_NAME = re.compile(r"\b(?:[A-Z][a-z]+|\d{2,})\b")
_COMMON = ("max", "min", "use", "no", "set", "get", "is", "default", "file", "cache", "size", "mode", "path", "user")


def coded(passages: Sequence[CutPassage], question: str, answer: str, draw: random.Random) -> Coded | None:
    """The passages with `answer` replaced by a made-up name, and that name; None where the answer cannot be replaced.

    Some other names and numbers of the passages become such names too.
    """
    place = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)", re.IGNORECASE)
    if len(answer) < 2 or place.search(question) or not any(place.search(p.text) for p in passages):
        return None
    if any(place.search(p.title) for p in passages):
        return None
    words = _WORD.findall(" ".join(p.text for p in passages).replace(answer, " ")) or ["item"]
    name, ticks = identifier(words, draw), draw.random() < 0.4
    found = []
    for passage in passages:
        text = place.sub(lambda _: _shown(name, ticks), passage.text)
        others = sorted(set(_NAME.findall(text)))
        for other in draw.sample(others, min(2, len(others))):
            decoy = _shown(identifier(words, draw), ticks)
            if other not in question and other not in name and name not in decoy:
                text = re.sub(rf"\b{other}\b", decoy.replace("\\", "\\\\"), text)
        found.append(replace(passage, text=text))
    return (found, name) if any(name in p.text for p in found) else None


def identifier(words: Sequence[str], draw: random.Random) -> str:
    """A made-up name of one of the kinds that manuals are full of, out of `words`."""
    first, second, third = draw.choice([*_COMMON, *words]), draw.choice(words), draw.choice(words)
    return draw.choice(_KINDS)(first, second, third, draw)


def _shown(name: str, ticks: bool) -> str:
    return f"`{name}`" if ticks else name


_Kind = Callable[[str, str, str, random.Random], str]
_KINDS: tuple[_Kind, ...] = (
    lambda a, b, c, d: f"{a}_{b}",
    lambda a, b, c, d: f"{a}_{b}_{c}",
    lambda a, b, c, d: f"{a}_{b}".upper(),
    lambda a, b, c, d: f"{a}_{b}_{c}".upper(),
    lambda a, b, c, d: a + b.title(),
    lambda a, b, c, d: b.title() + c.title(),
    lambda a, b, c, d: f"--{a}-{b}",
    lambda a, b, c, d: f"--{b}",
    lambda a, b, c, d: f"-{a[0]}",
    lambda a, b, c, d: f"{a}_{b}={d.choice(('True', 'False', 'None', str(d.randint(0, 99))))}",
    lambda a, b, c, d: f"{b}.{a}_{c}()",
    lambda a, b, c, d: f"{b}.{c}",
    lambda a, b, c, d: f"{b.title()}.{a.upper()}",
    lambda a, b, c, d: f"/etc/{b}/{c}.conf",
    lambda a, b, c, d: f"~/.{b}/{c}",
    lambda a, b, c, d: f"{b}.{d.choice(('toml', 'json', 'py', 'txt', 'yaml', 'cfg'))}",
    lambda a, b, c, d: f"pip install {b}-{c}",
    lambda a, b, c, d: f"{d.randint(0, 9)}.{d.randint(0, 20)}.{d.randint(0, 20)}",
    lambda a, b, c, d: f"{2 ** d.randint(0, 9)}{d.choice(('K', 'M', ' MB', ' GB', ' KiB', ' ms', ' s'))}",
    lambda a, b, c, d: str(2 ** d.randint(3, 31) - d.randint(0, 1)),
)
