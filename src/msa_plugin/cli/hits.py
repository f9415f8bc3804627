"""A hit for people: where it is, and its best passage with the question's words marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msa_plugin.stems import marked

if TYPE_CHECKING:
    from msa_plugin.cli.output import Output
    from msa_plugin.types import Hit

_SHOWN = 600  # characters of a passage


def show_hit(out: Output, hit: Hit, question: str) -> None:
    """A line with score, relevance, id, title and heading, then the passage, words marked in bold on a terminal."""
    passage = hit.passages[0]
    place = " > ".join(part for part in (hit.title, passage.heading) if part)
    judged = "" if hit.relevance is None else f"  {hit.relevance:4.0%}"
    out.say(
        f"{hit.score:6.3f}{judged}  [{hit.id}] {place}".rstrip() + f"  (characters {passage.start} to {passage.end})"
    )
    bounds = zip(("from", "until", "replaced by"), hit.validity, strict=True)
    if known := [f"{word} {value}" for word, value in bounds if value is not None]:
        out.say(f"        valid {', '.join(known)}")
    text = " ".join(passage.text.split())
    shown = text if len(text) <= _SHOWN else text[:_SHOWN].rsplit(" ", 1)[0] + " ..."
    out.say_marked(f"        {shown}", marked(shown, question, 8))
