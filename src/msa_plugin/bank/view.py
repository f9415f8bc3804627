"""What a handle sees: one moment of the bank, its mapped segments, and which of their documents may be returned."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from msa_plugin import dates
from msa_plugin.bank.catalog import Catalog
from msa_plugin.bank.documents import Totals
from msa_plugin.bank.filters import compile_filter
from msa_plugin.bank.scopes import At, Place, Scope, grouped
from msa_plugin.bank.segment import Segment
from msa_plugin.errors import BankCorruptError, InvalidQueryError
from msa_plugin.types import PRESENT, Asof, Filter, KeyBlock

_Parts: TypeAlias = "tuple[tuple[Segment, Tensor | None], ...]"


class _Hidden(NamedTuple):
    """Per segment, which documents are not valid from `since` until just before `until`."""

    since: str
    until: str | None
    masks: dict[int, Tensor]


class Moment:
    """Held by those who read from a view; while one of them lives, the rows that the view saw stay readable."""


@dataclass(frozen=True)
class Selection:
    """Documents that a query may return: per segment, a bool mask [n], or None where all of them may.

    It keeps its segments mapped and its moment readable, so it stays usable, documents and all, after a refresh or a
    compaction. `documents` counts the allowed; they are valid `asof` a time.
    """

    parts: tuple[tuple[Segment, Tensor | None], ...]
    documents: int
    moment: Moment
    asof: Asof = PRESENT

    @property
    def missed(self) -> tuple[int, ...]:
        """Shards that did not answer: none, for there are none."""
        return ()

    def key_blocks(self, group: str) -> Iterator[KeyBlock]:
        """One block per segment, in ordinal order; `keys` is the memory map itself, the same tensor on every call.

        Raises InvalidQueryError for an unknown group and BankCorruptError for a damaged segment.
        """
        for segment, allowed in self.parts:
            yield key_block(segment, group, allowed)

    def ordinals(self) -> Tensor:
        """Ordinals of all allowed documents, ascending int64 [n]."""
        parts = [s.ordinals if mask is None else s.ordinals[mask] for s, mask in self.parts]
        return torch.cat(parts).sort().values if parts else torch.empty(0, dtype=torch.int64)

    def admits(self, ordinals: Iterable[int]) -> set[int]:
        """Those of `ordinals` that are allowed."""
        return set(self.only(ordinals).ordinals().tolist())

    def only(self, ordinals: Iterable[int]) -> Selection:
        """Those of the allowed documents that have one of `ordinals`."""
        wanted = torch.tensor(sorted(set(ordinals)), dtype=torch.int64)
        parts = []
        for segment, allowed in self.parts:
            mask = torch.isin(segment.ordinals, wanted)
            parts.append((segment, mask if allowed is None else mask & allowed))
        return _selection(parts, self.moment, self.asof)


def key_block(segment: Segment, group: str, allowed: Tensor | None) -> KeyBlock:
    """A segment's keys for the scorer, those of the `allowed` documents checked; see `Selection.key_blocks`."""
    segment.check()
    if group not in segment.keys:
        raise InvalidQueryError(f"no key group {group!r} in this bank; there are {sorted(segment.keys)}")
    segment.check_keys(allowed)
    return KeyBlock(segment.keys[group], segment.key_offsets, segment.ordinals, allowed, segment.scales.get(group))


class View:
    """A moment of the bank. Masks and sums are worked out on first use and kept: a moment never changes."""

    def __init__(self, at: At, segments: Mapping[int, Segment], catalog: Catalog, newest: int) -> None:
        """`segments` by number, in ordinal order; `catalog` reads within the transaction that pins the moment.

        `newest` is the bank's version then, which is a later one than that of a named moment.
        """
        self.at = at
        self.segments = segments
        self.catalog = catalog
        self.newest = newest
        self.on_unused: Callable[[], None] = lambda: None  # called when nobody reads from it any more
        self._rows = catalog.documents
        self._moment: Callable[[], Moment | None] = lambda: None
        self._whole: dict[Scope, tuple[_Parts, int]] = {}
        self._hidden: dict[Scope, _Hidden] = {}
        self._totals: dict[str, Totals] = {}

    @property
    def in_use(self) -> bool:
        """Whether somebody still reads from it."""
        return self._moment() is not None

    def moment(self) -> Moment:
        """What to hold on to for as long as one reads from this view."""
        moment = self._moment() or Moment()
        on_unused = self.on_unused
        self._moment = weakref.ref(moment, lambda _: on_unused())
        return moment

    def totals(self, namespace: str) -> Totals:
        """Sums over a namespace."""
        if namespace not in self._totals:
            self._totals[namespace] = self._rows.totals(self.at, namespace)
        return self._totals[namespace]

    def select(self, scope: Scope, where: Filter | None, asof: Asof = PRESENT) -> Selection:
        """Documents in `scope` that are alive, valid `asof` a time and pass `where`.

        Raises InvalidQueryError for a malformed filter.
        """
        selection = self._passing_all(scope, where)
        hidden = {} if asof.history or not self._timed else self._hidden_at(scope, asof.at)
        if not hidden:
            return replace(selection, asof=asof)
        parts = []
        for segment, allowed in selection.parts:
            gone = hidden.get(segment.record.number)
            kept = None if gone is None else ~gone
            parts.append((segment, kept if allowed is None else allowed if kept is None else allowed & kept))
        return _selection(parts, selection.moment, asof)

    @cached_property
    def _timed(self) -> bool:
        return self._rows.periods.exist

    def _hidden_at(self, scope: Scope, at: str | None) -> dict[int, Tensor]:
        """Masks of the documents that are not valid: as of a date, or at present, kept until that changes."""
        if at is not None:
            return self._masks(self._rows.periods.hidden(self.at, scope, at, present=False))
        now, kept = dates.clock(), self._hidden.get(scope)
        if kept is None or not kept.since <= now or (kept.until is not None and kept.until <= now):
            masks = self._masks(self._rows.periods.hidden(self.at, scope, now, present=True))
            kept = self._hidden[scope] = _Hidden(now, self._rows.periods.next_change(scope, now), masks)
        return kept.masks

    def _passing_all(self, scope: Scope, where: Filter | None) -> Selection:
        if where is None or (isinstance(where, Mapping) and not where):
            if scope not in self._whole:
                below = scope.below
                every = self._rows.matching_places(self.at, scope, None) if below else ()
                parts = self._parts_of(every) if below else self._all_parts(scope.namespace)
                whole = _selection(parts, self.moment())
                self._whole[scope] = whole.parts, whole.documents
            return Selection(*self._whole[scope], self.moment())
        if isinstance(where, Mapping):
            places = self._rows.matching_places(self.at, scope, compile_filter(where))
        elif callable(where):
            places = self._passing(scope, where)
        else:
            raise InvalidQueryError(f"a filter is a mapping or a function of the metadata, not {type(where).__name__}")
        return _selection(self._parts_of(places), self.moment())

    def _parts_of(self, places: Iterable[Place]) -> Iterable[tuple[Segment, Tensor | None]]:
        masks = self._masks(places)
        return ((self.segments[number], masks[number]) for number in self.segments if number in masks)

    def _all_parts(self, namespace: str) -> list[tuple[Segment, Tensor | None]]:
        dead = self._masks(self._rows.dead_places(self.at, namespace))
        shared: dict[int, Tensor] = {}
        if any(segment.record.namespace is None for segment in self.segments.values()):
            shared = self._masks(self._rows.places_in_shared_segments(self.at, namespace))
        parts: list[tuple[Segment, Tensor | None]] = []
        for number, segment in self.segments.items():
            if segment.record.namespace == namespace:
                parts.append((segment, ~dead[number] if number in dead else None))
            elif number in shared:
                parts.append((segment, shared[number]))
        return parts

    def _passing(self, scope: Scope, accepts: Callable[[Mapping[str, Any]], bool]) -> Iterator[Place]:
        for place, metadata in self._rows.metadata(self.at, scope):
            try:
                accepted = accepts(metadata)
            except Exception as error:
                raise InvalidQueryError(f"the filter function raised {error!r} on metadata {metadata!r}") from error
            if accepted:
                yield place

    def _masks(self, places: Iterable[Place]) -> dict[int, Tensor]:
        """A bool mask [n] for each segment that has one of the `places`."""
        masks = {}
        for number, found in grouped(places).items():
            masks[number] = torch.zeros(self.segment(number, found).record.documents, dtype=torch.bool)
            masks[number][torch.tensor(found)] = True
        return masks

    def located(self, places: Sequence[Place]) -> list[tuple[Segment, int]]:
        """Each place's segment, which was checked, and the position in it. Raises BankCorruptError."""
        segments = {number: self.segment(number, found) for number, found in grouped(places).items()}
        for segment in segments.values():
            segment.check()
        return [(segments[number], position) for number, position in places]

    def segment(self, number: int, positions: Sequence[int]) -> Segment:
        """The segment `number`. Raises BankCorruptError where it, or one of `positions` in it, does not exist."""
        segment = self.segments.get(number)
        try:
            within = torch.tensor(positions, dtype=torch.int64)
        except (TypeError, ValueError, RuntimeError):  # no number, or none that is whole and fits
            segment = None
        if segment is None or int(within.min()) < 0 or int(within.max()) >= segment.record.documents:
            raise BankCorruptError(f"the catalog places documents in segment {number!r:.80} where there are none")
        return segment


def _selection(parts: Iterable[tuple[Segment, Tensor | None]], moment: Moment, asof: Asof = PRESENT) -> Selection:
    """Drop masks that allow everything and segments that allow nothing."""
    kept: list[tuple[Segment, Tensor | None]] = []
    total = 0
    for segment, mask in parts:
        allowed = segment.record.documents if mask is None else int(mask.sum())
        total += allowed
        if allowed:
            kept.append((segment, mask if allowed < segment.record.documents else None))
    return Selection(tuple(kept), total, moment, asof)


def open_view(catalog: Catalog, root: Path, mapped: Mapping[int, Segment], snapshot: str | None) -> View:
    """Pin the newest moment of `catalog` and map its segments under `root`, keeping those in `mapped`.

    With the name of a `snapshot`, the view is of that moment. Raises BankCorruptError for missing or damaged files,
    SnapshotError for an unknown name.
    """
    failed_at = -1
    while True:
        catalog.hold_snapshot()
        newest = catalog.now()
        try:
            records = catalog.segments()
            segments = {r.number: mapped.get(r.number) or Segment(r, root) for r in records}
        except FileNotFoundError as error:
            # A compaction may have removed the files of the moment just pinned: look again, at a later one.
            if newest.version == failed_at:
                raise BankCorruptError(
                    f"{error.filename or error} is missing; run `msa bank verify`, then restore it from a backup"
                ) from error
            failed_at = newest.version
            continue
        at = catalog.snapshot(snapshot).at if snapshot else newest
        return View(at, segments, catalog, newest.version)
