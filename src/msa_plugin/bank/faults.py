"""Named moments within every change to a bank, where tests make a process die or a step fail.

A change calls `fault_point` at each of them. Outside `injected`, which only code can enter, that does nothing: no
setting, environment variable or file switches it on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

POINTS = {
    # Making a bank.
    "create.folder-made": "the bank's folder is there, and empty",
    "create.catalog-filled": "an empty catalog is whole, under a temporary name",
    "create.catalog-named": "the catalog has its name, which is not durable",
    # Writing.
    "writer.locked": "the writer lock is held and leftovers are gone; nothing is changed",
    "writer.refreshed": "the change is done or undone, and the handle sees so; leftovers may lie about",
    "seal.removed": "the catalog's seal is gone, durably; nothing is changed",
    "seal.written": "a catalog that is at rest has its seal",
    # A segment, which nobody sees before the catalog names it.
    "segment.folder-made": "its folder is there under a temporary name, and empty",
    "segment.file-begun": "a file has its header; no latents",
    "segment.file-written": "a file has all its bytes, perhaps not on the disk",
    "segment.file-durable": "a file is on the disk; its name may not be",
    "segment.folder-durable": "all files are durable, the folder under its temporary name",
    "segment.named": "the folder has its name, which is not durable",
    "segment.durable": "nothing is missing but the catalog's word",
    "segment.words-named": "the words of a segment that is in use are durable; the catalog does not name them",
    # A transaction of the catalog.
    "transaction.begun": "nothing is changed",
    "transaction.filled": "all rows are changed, the version is not",
    "transaction.ready": "everything is changed, nothing is committed",
    "transaction.committed": "the change is durable; the caller has not been told",
    "transaction.settled": "what a failed commit may have left in the log is written over",
    # Adding and updating, within a transaction.
    "commit.replaced": "earlier documents of the same ids are marked as deleted; no new one has a row",
    "commit.segment-listed": "the segment is listed; no document has a row",
    "commit.row-added": "one more document has a row, without its text",
    "commit.text-added": "one more document has its row and text; later ones may not",
    "commit.periods-added": "all documents have rows and texts, and those that know a time their periods",
    "commit.arrival-noted": "all rows are there, and when they were stored",
    "commit.merging": "the commit is done; many small segments before it are about to be merged",
    # Deleting and naming moments, within a transaction.
    "delete.marked": "the documents are marked as deleted",
    "snapshot.listed": "the snapshot has its row",
    "snapshot.dropped": "the snapshot's row is gone",
    # Compacting: the first outside a transaction, three within one, the others after it.
    "compact.segment-written": "one more merged segment is durable; the catalog names the old ones",
    "compact.purged": "rows that no moment needs are gone",
    "compact.moved": "the rows of one more merged segment point at it",
    "compact.unlisted": "segments without rows are unlisted; their folders are there",
    "compact.vacuumed": "the catalog is rewritten without gaps, in the log",
    "compact.log-emptied": "the log is emptied, unless readers were in the way",
    "log.moved": "a long log is moved into the catalog, as far as readers allow",
    "sweep.begun": "folders that nobody names are about to be removed; the log cannot bring their names back",
    "sweep.removed": "one more of them is gone",
    # Repairing, under the writer lock.
    "repair.catalog-kept": "the damaged catalog is copied aside; nothing is changed",
    "repair.catalog-filled": "a copy of all rows that can be read is whole, under a temporary name",
    "repair.catalog-replaced": "the copy is in place of the damaged catalog; damaged latents are still named",
    "repair.texts-written": "the texts of one more namespace are in a file without its name",
    "repair.texts-saved": "the texts of all damaged documents are durable; their rows are there",
    "repair.dropped": "damaged documents have no rows any more; sound ones near them may lie in gapped segments",
    "repair.words-counted": "the words of one more segment are what its texts have",
    # Migrating, under the writer lock.
    "migrate.segments-written": "all segments are there in the present format; the catalog names the old ones",
    "migrate.committed": "the bank is in the present format; the old segments' folders are there",
}
"""Each point, and what is and is not done there."""

_handler: Callable[[str], None] | None = None


def fault_point(point: str) -> None:
    """A change is at `point`; raises whatever an injected handler raises."""
    if _handler is not None:
        _handler(point)


@contextmanager
def injected(handler: Callable[[str], None]) -> Iterator[None]:
    """Call `handler` with each point that this process reaches inside, in any thread."""
    global _handler
    before, _handler = _handler, handler
    try:
        yield
    finally:
        _handler = before
