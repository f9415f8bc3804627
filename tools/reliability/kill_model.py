"""What the kills compare a bank with: a plain dictionary, and how each change alters it."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any, TypeAlias

Op: TypeAlias = "dict[str, Any]"
SPACES = ("alice", "bob", "alice/bob")
IDS = ("a", "b", "c", "d", "é", "f", "g", "h'); --")
LONG = 40  # every so manieth version of a text is long enough to have the log moved
WEIGHTS = {"add": 8, "delete": 3, "compact": 3, "snapshot": 2, "drop": 2}


class Model:
    """`spaces`: namespace -> id -> (version of the text, metadata). `snapshots`: name -> a copy of `spaces`."""

    def __init__(self) -> None:
        self.spaces: dict[str, dict[str, tuple[int, dict[str, Any]]]] = {space: {} for space in SPACES}
        self.snapshots: dict[str, Any] = {}

    def after(self, op: Op | None) -> Model:
        """The model once `op` has happened."""
        new = copy.deepcopy(self)
        match op:
            case {"op": "add", "space": space, "items": items}:
                new.spaces[space] |= {name: (version, metadata) for name, version, metadata in items}
            case {"op": "delete", "space": space, "ids": ids}:
                new.spaces[space] = {k: v for k, v in new.spaces[space].items() if k not in ids}
            case {"op": "snapshot", "name": name}:
                new.snapshots[name] = copy.deepcopy(new.spaces)
            case {"op": "drop", "name": name}:
                del new.snapshots[name]
        return new

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def text_of(name: str, version: int) -> str:
    """The text of a document's `version`."""
    return f"{name}, version {version}. " * (300_000 if version % LONG == 0 else 1 + version % 3)


class Generator:
    """An endless, seeded sequence of changes that make sense for a model."""

    def __init__(self, seed: int, spaces: Sequence[str], *, long: bool) -> None:
        """Of changes in `spaces`; without `long`, no text is long."""
        self._rng = random.Random(seed)
        self._spaces, self._long = spaces, long
        self._versions = self._names = 0

    def next(self, model: Model, kind: str | None = None) -> Op:
        """A change to `model`, of this `kind` if it is given."""
        rng = self._rng
        kind = kind or rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if kind == "drop" and not model.snapshots:
            kind = "snapshot"
        if kind == "snapshot" and len(model.snapshots) > 2:
            kind = "drop"
        space = rng.choice([name for name in self._spaces if kind != "delete" or model.spaces[name]] or self._spaces)
        match kind:
            case "add" | "add-long":
                names = rng.sample(IDS, 1 if kind == "add-long" else rng.randint(1, 4))
                items = [(name, self._version(kind), self._metadata()) for name in names]
                return {"op": "add", "space": space, "items": items}
            case "delete":
                live = sorted(model.spaces[space])
                return {
                    "op": "delete",
                    "space": space,
                    "ids": sorted({rng.choice(IDS), *rng.sample(live, min(len(live), 1))}),
                }
            case "compact":
                return {"op": "compact", "segment_bytes": rng.choice([1, 2_000, 1 << 20])}
            case "snapshot":
                self._names += 1
                return {"op": "snapshot", "name": f"s{self._names}"}
            case _:
                return {"op": "drop", "name": rng.choice(sorted(model.snapshots))}

    def _version(self, kind: str) -> int:
        self._versions += 1
        if kind == "add-long":
            return self._versions * LONG
        return self._versions if self._long or self._versions % LONG else self._version(kind)

    def _metadata(self) -> dict[str, Any]:
        return {"n": self._rng.randint(0, 3), "tag": self._rng.choice("xy")}
