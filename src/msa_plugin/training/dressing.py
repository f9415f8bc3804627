"""CutPassages in the clothes of real documents: Markdown, rests of web pages, wrapped lines, code listings.

Training sets hold clean paragraphs. Manuals do not, and a model that has seen only paragraphs loses its way in them.
"""

from __future__ import annotations

import random
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")
_HEADINGS = ("Overview", "Introduction", "Background", "Notes", "Details", "Usage", "History", "About", "Description")
_MENUS = (
    "Skip to content | Home | Docs | API | Search",
    "Table of contents\n* Overview\n* Details\n* See also",
    "[edit] [view source] [history]",
    "« previous | next » | index",
)
_FOOTERS = ("Last updated 3 days ago.", "Was this page helpful? Yes / No", "All rights reserved.", "Back to top")
_CODE = (
    "```python\nclient = connect({0!r})\nfor item in client.{1}():\n    print(item)\n```",
    "```sh\n$ {1} --{2} input.txt > output.txt\n```",
    "    {1} = load({0!r})\n    assert {1}.{2} is not None",
    '```json\n{{"{1}": {{"{2}": true, "name": "{0}"}}}}\n```',
    "```\n{1}({2}, *, strict=False)\n```",
)


@dataclass(frozen=True)
class CutPassage:
    """Part of a document with its document's title and a heading, either of which may be ""."""

    title: str
    heading: str
    text: str


def dressed(passages: Sequence[CutPassage], answer: str, draw: random.Random) -> list[CutPassage]:
    """All passages in one random style; the words of `answer` stay as they are."""
    style = draw.choice((_markdown, _page, _wrapped, _listed))
    headed = (replace(p, heading=draw.choice(_HEADINGS)) if draw.random() < 0.5 else p for p in passages)
    return [style(p, answer, draw) for p in headed]  # one after the other, as they are drawn


def _markdown(passage: CutPassage, answer: str, draw: random.Random) -> CutPassage:
    sentences = SENTENCE.split(passage.text)
    bullets = draw.random() < 0.5
    lines = [f"- {s}" if bullets else s for s in (_marked(s, answer, draw) for s in sentences)]
    head = f"{'#' * draw.randint(1, 3)} {passage.heading or passage.title or draw.choice(_HEADINGS)}\n\n"
    return replace(passage, text=head + ("\n" if bullets else " ").join(lines))


def _marked(sentence: str, answer: str, draw: random.Random) -> str:
    """One word of the sentence as bold or code, unless it belongs to the answer."""
    words = sentence.split(" ")
    place = draw.randrange(len(words))
    word = words[place]
    if draw.random() < 0.6 or not word.isalpha() or word.lower() in answer.lower():
        return sentence
    words[place] = draw.choice(("**{}**", "*{}*", "`{}`", "[{}](#" + word.lower() + ")")).format(word)
    return " ".join(words)


def _page(passage: CutPassage, answer: str, draw: random.Random) -> CutPassage:
    parts = [passage.text]
    if draw.random() < 0.7:
        parts.insert(0, draw.choice(_MENUS))
    if draw.random() < 0.7:
        parts.append(draw.choice(_FOOTERS))
    return replace(passage, text="\n\n".join(parts))


def _wrapped(passage: CutPassage, answer: str, draw: random.Random) -> CutPassage:
    indent = " " * draw.choice((0, 0, 3, 7))
    lines = textwrap.wrap(passage.text, draw.randint(58, 79), initial_indent=indent, subsequent_indent=indent)
    if passage.heading:
        lines = [passage.heading.upper(), *lines] if draw.random() < 0.5 else [passage.heading, "-" * 12, *lines]
    return replace(passage, text="\n".join(lines))


def _listed(passage: CutPassage, answer: str, draw: random.Random) -> CutPassage:
    """A code listing before or after the text, made of the passage's own words."""
    words = [w for w in re.findall(r"[A-Za-z]{4,}", passage.text) if w.lower() not in answer.lower()] or ["item"]
    names = [draw.choice(words) for _ in range(3)]
    code = draw.choice(_CODE).format(names[0], names[1].lower(), names[2].lower())
    parts = [passage.text, code] if draw.random() < 0.5 else [code, passage.text]
    return replace(passage, text="\n\n".join(parts))
