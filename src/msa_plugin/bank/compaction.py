"""Compaction: rewrite what is still needed into fewer, fuller segments, then forget the rest in one transaction.

Segments hold disjoint, ascending ranges of ordinals, before and after. A segment that is full enough and has no dead
document is left alone, so compacting often is cheap. Documents stream from map to file: memory does not grow with the
bank's latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, groupby, takewhile
from pathlib import Path
from typing import NamedTuple

from msa_plugin.bank.catalog import Catalog
from msa_plugin.bank.faults import fault_point
from msa_plugin.bank.segment import Segment
from msa_plugin.bank.words import WordTable
from msa_plugin.bank.writing import write_segment

SEGMENT_BYTES = 64 << 20
TAIL_SEGMENTS, TAIL_BYTES = 64, 4 << 20


class _Item(NamedTuple):
    segment: Segment
    position: int
    ordinal: int
    namespace: str
    bytes: int


def compact(catalog: Catalog, root: Path, segments: Mapping[int, Segment], segment_bytes: int) -> bool:
    """Compact `segments`, newest version; the caller holds the writer lock, and removes the folders of those retired.

    Returns False when there was nothing to do. Raises OSError, sqlite3.Error and BankCorruptError, changing nothing.
    """
    written = []
    for group in _groups(_items(catalog, segments, segment_bytes), segment_bytes):
        namespaces = {item.namespace for item in group}
        ordinals = [item.ordinal for item in group]
        latents = [item.segment.latents(item.position) for item in group]
        owner = namespaces.pop() if len(namespaces) == 1 else None
        words = _words(catalog, group) if catalog.keeps_words else None
        written.append((write_segment(root, ordinals, latents, owner, words), ordinals))
        fault_point("compact.segment-written")
    if not written and not any(map(catalog.documents.any_unneeded, segments)):
        return False
    with catalog.transaction():
        for number in segments:
            catalog.documents.purge(number)
        fault_point("compact.purged")
        for record, ordinals in written:
            catalog.documents.move(ordinals, catalog.add_segment(record))
            fault_point("compact.moved")
        catalog.drop_empty_segments()
        fault_point("compact.unlisted")
    return True


def small_tail(segments: Mapping[int, Segment]) -> dict[int, Segment]:
    """The newest segments, if many and small, as adding documents one by one leaves them: each costs maps and looks.

    Merging them into segments of `TAIL_BYTES` keeps the time of a commit from growing with the number of commits.
    """
    small = takewhile(lambda item: item[1].latent_bytes * 2 < TAIL_BYTES, reversed(list(segments.items())))
    tail = dict(reversed(list(small)))
    return tail if len(tail) >= TAIL_SEGMENTS else {}


def _words(catalog: Catalog, group: list[_Item]) -> WordTable:
    """The words of a group: merged where this process's tokeniser counted them, else counted anew from texts."""
    parts: list[tuple[WordTable, Sequence[int]]] = []
    for segment, run in groupby(group, key=lambda item: item.segment):
        items = list(run)
        if segment.words is not None:
            parts.append((segment.words, [item.position for item in items]))
        else:
            texts = catalog.documents.texts([item.ordinal for item in items])
            parts.append((WordTable.of(texts), range(len(items))))
    return WordTable.merged(parts)


def _items(catalog: Catalog, segments: Mapping[int, Segment], segment_bytes: int) -> Iterator[_Item | None]:
    """Documents to rewrite, in ordinal order; None where a segment that stays lies between them."""
    for number, segment in segments.items():
        needed = catalog.documents.needed(number)
        if len(needed) == segment.record.documents and segment.latent_bytes * 2 >= segment_bytes:
            yield None
            continue
        segment.check()
        for position, ordinal, namespace in needed:
            size = segment.document_bytes(position)
            yield _Item(segment, position, ordinal, namespace, size)


def _groups(items: Iterator[_Item | None], segment_bytes: int) -> Iterator[list[_Item]]:
    """Runs of documents for one new segment each; a run that is exactly an existing segment is left out."""
    group: list[_Item] = []
    size = 0
    for item in chain(items, (None,)):
        if group and (item is None or size + item.bytes > segment_bytes or not _alike(item, group[0])):
            whole = group[0].segment
            if len(group) < whole.record.documents or any(one.segment is not whole for one in group):
                yield group
            group, size = [], 0
        if item is not None:
            group.append(item)
            size += item.bytes


def _alike(one: _Item, other: _Item) -> bool:
    return one.segment is other.segment or one.segment.signature == other.segment.signature
