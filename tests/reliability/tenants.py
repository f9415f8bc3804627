"""Two worlds: in one, tenant ACME shares the bank with BOLT; in the other there never was an ACME.

Whatever BOLT does must look the same in both: results, errors, log. That one comparison covers documents that leak,
errors that tell whether an id exists, counts, and duplicates that are recognised across tenants. What is about the
whole bank by nature (sizes in bytes, ordinals, seconds) is left out by `plain`, and named there.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from facade import about, opened
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.errors import MSAError
from msa_plugin.memory import LatentMemory

ACME, BOLT = "acme-corp", "bolt"
SECRETS = ("acme", "zanzibar", "quicksilver")  # every id, text, field and name of ACME's own holds one
SHARED = ("ledger", "diary")  # ids that both have, for other texts
GUESSED = [*SHARED, "acme-plan", "nobody"]  # what BOLT tries: both's, ACME's alone, no one's
BARE = "A text without an id: its id is made from what it says, so whoever stores it gets the same one."
QUESTION = "what is written in the ledger?"
EVERYTHING: dict[str, Any] = {"filter": lambda metadata: True}
BREAKOUTS: list[Mapping[str, Any]] = [
    {"namespace": ACME},
    {"$or": [{"owner": "acme"}, {"owner": {"$exists": False}}, {"owner": {"$ne": "x"}}]},
    {"$not": {"owner": "bolt"}},
    {"owner": "acme' OR '1'='1"},
    {"x') OR 1=1 --": {"$exists": True}},
    {"owner": {"$in": ["acme", "bolt", '"); DROP TABLE documents; --']}},
    {"owner": {"$nin": ["nobody"]}},
    {"$.owner": "acme"},
    {"f0": 1, ":namespace": ACME, "owner": {"$gte": ""}},
    {"owner\x00": {"$exists": False}},
]


def of_acme() -> list[dict[str, Any]]:
    """ACME's documents."""
    texts = {"ledger": "zanzibar owes quicksilver", "diary": "met zanzibar today", "acme-plan": "buy quicksilver"}
    return [{"id": i, "text": f"{t}. {about('violin')}", "metadata": {"owner": "acme"}} for i, t in texts.items()]


def of_bolt() -> list[dict[str, Any]]:
    """BOLT's documents."""
    texts = {"ledger": about("glacier"), "diary": about("saffron"), "own": about("harbour")}
    return [{"id": i, "text": t, "metadata": {"owner": "bolt", "n": n}} for n, (i, t) in enumerate(texts.items())]


def populate(folder: Path, backbone: Backbone, adapter: Adapter | None, *, shared: bool, **settings: Any) -> None:
    """Make the bank of one world: BOLT's documents, with ACME's (`shared`) before, between and after them."""
    with opened(folder, backbone, adapter, namespace=BOLT, **settings) as bolt:
        acme = opened(folder, backbone, adapter, namespace=ACME, **settings) if shared else None
        for number, document in enumerate(of_bolt()):
            if acme:
                acme.add([of_acme()[number], f"{BARE} {number}", BARE])
            bolt.add(document)
        if acme:
            acme.add({"id": "own", "text": "zanzibar for a while"})
            acme.delete("own")
            acme.close()


def picture(folder: Path, backbone: Backbone, adapter: Adapter | None, **settings: Any) -> tuple[Any, ...]:
    """What ACME has and finds."""
    with opened(folder, backbone, adapter, namespace=ACME, **settings) as acme:
        hits = acme.retrieve(QUESTION, 50)
        return acme.get(list(acme.ids())), [(h.id, h.score, h.ordinal) for h in hits], acme.stats().documents


def outcome(attack: Callable[[LatentMemory], Any], memory: LatentMemory) -> Any:
    """What an attack brings to light, in plain values: its result, or its error."""
    try:
        return plain(asyncio.run(_awaited(attack(memory))))
    except (MSAError, StopIteration) as error:
        return f"{type(error).__name__}: {_PATH.sub('BANK', str(error))}"


async def _awaited(value: Any) -> Any:
    if inspect.isawaitable(value):
        value = await value
    if isinstance(value, AsyncIterator):
        return [piece async for piece in value]
    return list(value) if isinstance(value, Iterator) else value


_PATH = re.compile(r"/\S*/bank\b")
_OF_THE_BANK = re.compile(r"seconds|ordinal|segments|files|bytes.*")


def plain(value: Any) -> Any:
    """A value to compare, without seconds, ordinals and the sizes of the whole bank."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items() if not _OF_THE_BANK.fullmatch(str(k))}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, (Tensor, np.ndarray)):
        return value.tolist()
    return value if isinstance(value, (str, int, float, type(None))) else type(value).__name__


def leaks(text: str, given: str = "") -> list[str]:
    """Secrets in `text` that the attack itself did not bring along."""
    return [secret for secret in SECRETS if secret in text.lower() and secret not in given.lower()]
