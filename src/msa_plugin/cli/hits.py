"""A hit for people: where it is, and its best passage with the question's words marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msa_plugin.stems import marked

if TYPE_CHECKING:
    from msa_plugin.cli.output import Output
    from msa_plugin.types import Hit

_SHOWN = 600  # characters of a passage


def where_it_is(title: str, heading: str) -> str:
    """Title and heading of a passage, once where they are the same."""
    return " > ".join(dict.fromkeys(part for part in (title, heading) if part))


def show_hit(out: Output, hit: Hit, question: str) -> None:
    """A line with id, title, heading, score and relevance, then the passage, words marked in bold on a terminal."""
    passage = hit.passages[0]
    place = where_it_is(hit.title, passage.heading)
    judged = "" if hit.relevance is None else f", relevance {hit.relevance:.0%}"
    scored = f"score {hit.score:.3f}{judged}, characters {passage.start} to {passage.end}"
    out.say(f"[{hit.id}] {place}".rstrip() + f"  ({scored})")
    bounds = zip(("from", "until", "replaced by"), hit.validity, strict=True)
    if known := [f"{word} {value}" for word, value in bounds if value is not None]:
        out.say(f"        valid {', '.join(known)}")
    text = " ".join(passage.text.split())
    shown = text if len(text) <= _SHOWN else text[:_SHOWN].rsplit(" ", 1)[0] + " ..."
    out.say_marked(f"        {shown}", marked(shown, question, 8))
