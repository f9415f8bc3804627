"""Words, names and sentences that haystacks and needles are made of. All of it was written for this benchmark."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from importlib import resources
from random import Random

# Words and phrases, a line each, below the name of their list.
_TEXT = (resources.files("msa_plugin.data") / "needle_words.txt").read_text(encoding="utf-8")
_LISTS = {name: tuple(lines) for name, *lines in (part.strip().splitlines() for part in _TEXT.split("# ")[1:])}
_COLOURS, _THINGS, _PLACES = (_LISTS[name] for name in ("colours", "things", "places"))
NAMED = {"word": ("password", "passwords"), "number": ("locker code", "locker codes"), "uuid": ("serial", "serials")}
KEYS = len(_COLOURS) * len(_THINGS) * len(_PLACES)  # how many names there are


def noise(random: Random) -> Iterator[list[str]]:
    """Passages of about 100 words that say the same few things again and again, in changing order."""
    while True:
        yield [_any(random, "noise") for _ in range(18)]


def essays(random: Random) -> Iterator[list[str]]:
    """Passages of about 100 words in the manner of an essay, each on its theme, no two alike."""
    while True:
        theme = _any(random, "themes")
        remarks = random.sample(_LISTS["remarks"], 2)
        sentences = [remarks[0].format(theme=theme), *(_sentence(random) for _ in range(5))]
        yield [*sentences, remarks[1].format(theme=theme)]


def _any(random: Random, name: str) -> str:
    return random.choice(_LISTS[name])


def _sentence(random: Random) -> str:
    subject, verb, what = (_any(random, name) for name in ("subjects", "verbs", "objects"))
    if random.random() < 0.5:
        return f"{random.choice(_LISTS['openers'])}, {subject} {verb} {what} {random.choice(_LISTS['clauses'])}."
    then = f"{random.choice(_LISTS['verbs'])} {random.choice([o for o in _LISTS['objects'] if o != what])}"
    return f"{subject[0].upper()}{subject[1:]} {verb} {what}, {random.choice(_LISTS['clauses'])}, and {then}."


def names(random: Random, kind: str, count: int) -> list[str]:
    """`count` distinct names of things, or with kind "uuid" of numbered items; at most `KEYS` things have names."""
    if kind == "uuid":
        return [f"item {identifier(random)}" for _ in range(count)]
    found = []
    for number in random.sample(range(KEYS), count):
        rest, place = divmod(number, len(_PLACES))
        colour, thing = divmod(rest, len(_THINGS))
        found.append(f"the {_COLOURS[colour]} {_THINGS[thing]} of {_PLACES[place]}")
    return found


def value(random: Random, kind: str) -> str:
    """Something to be remembered: a pair of words, a number of seven digits, or a UUID."""
    if kind == "word":
        return f"{random.choice(_LISTS['moods'])}-{random.choice(_LISTS['animals'])}"
    return str(random.randrange(1_000_000, 10_000_000)) if kind == "number" else identifier(random)


def identifier(random: Random) -> str:
    """A random UUID (version 4)."""
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def needle(name: str, kind: str, held: str, *, several: bool = False) -> str:
    """The sentence that says what a named thing holds; `several` if it holds more."""
    one, many = NAMED[kind]
    return f"One of the {many} of {name} is {held}." if several else f"The {one} of {name} is {held}."


def question(asked: list[str], kind: str, values: int) -> str:
    """Asks for everything that the named things hold."""
    one, many = NAMED[kind]
    if values > 1:
        return f"What are all {values} {many} of {asked[0]}?"
    if len(asked) == 1:
        return f"What is the {one} of {asked[0]}?"
    return f"What are the {many} of {', '.join(asked[:-1])} and {asked[-1]}?"
