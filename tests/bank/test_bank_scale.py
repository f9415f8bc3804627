"""A bank of a million chunks: opening and selecting must not read it."""

import random
import tracemalloc
from pathlib import Path

import pytest
import torch
from bank_builder import NS, open_bank

from msa_plugin.types import Document, EncodedDocument

CHUNKS, DOCUMENTS, SEGMENTS, WIDTH = 1_000_000, 100_000, 8, 64


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "bank"
    each, chunks = DOCUMENTS // SEGMENTS, CHUNKS // DOCUMENTS
    keys = torch.arange(each * chunks * WIDTH).remainder(2048).half().view(each, chunks, WIDTH)
    with open_bank(folder) as bank:
        for segment in range(SEGMENTS):
            texts = (Document(f"{segment}-{n}", "some text", "", {"n": n}) for n in range(each))
            bank.commit(
                [EncodedDocument(text, 640, {"shared": k}, {}) for text, k in zip(texts, keys, strict=True)], NS
            )
    return folder


def resident(folder):
    """Bytes of the bank's segment files that this process has touched through its memory maps."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0] and not line.split(" ", 1)[0].endswith(":"):
            ours = str(folder) in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's account of memory maps")
def test_opening_and_selecting_read_no_keys_and_no_rows_and_scoring_checks_keys_once(large):
    keys_bytes = CHUNKS * WIDTH * 2
    assert sum(p.stat().st_size for p in large.glob("segments/*/*")) > keys_bytes
    tracemalloc.start()
    try:
        with open_bank(large, read_only=True) as bank:
            selection = bank.select(NS)
            _, peak = tracemalloc.get_traced_memory()
            assert peak < DOCUMENTS, f"less than a byte of Python objects per document, not {peak}"
            assert selection.documents == DOCUMENTS
            untouched = resident(large)
            assert untouched < keys_bytes / 10
            bank.key_rows(random.Random(0).sample(range(1, DOCUMENTS), 16), "shared")[0].sum()
            assert resident(large) < keys_bytes / 10, "gathering a few documents reads a few pages"
            blocks = selection.key_blocks("shared")
            next(blocks)
            checked = resident(large)
            assert checked - untouched > keys_bytes / SEGMENTS / 2, "a segment's keys are read to be checked"
            assert sum(len(block.keys) for block in blocks) == CHUNKS - CHUNKS // SEGMENTS
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_lookups_use_indexes(large):
    """SQLite's own count of steps: an id lookup must not grow with the bank, nor liveness with the living."""
    with open_bank(large) as bank:
        bank.delete(["0-0", "3-7"], NS)
        steps = [0]

        def count():
            steps[0] += 1

        def cost(action):
            steps[0] = 0
            bank._views.now.catalog._db.set_progress_handler(count, 100)
            action()
            bank._views.now.catalog._db.set_progress_handler(None, 0)
            return steps[0] * 100

        assert cost(lambda: bank.lookup(["5-5"], NS)) < 1000
        assert cost(lambda: bank.get(["5-5"], NS)) < 1000
        assert cost(lambda: bank.documents([5, 50_000])) < 1000
        assert cost(lambda: bank.select(NS)) < 1000
        assert cost(bank.refresh) < 1000
        assert cost(lambda: bank.select(NS, {"n": 1})) > DOCUMENTS, "the measure notices a scan"
        masked = [block for block in bank.select(NS).key_blocks("shared") if block.allowed is not None]
        assert [int((~block.allowed).sum()) for block in masked] == [1, 1]
