"""Equal calls make equal banks, byte for byte, and equal questions equal answers, whatever the process and the hour."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).parent
_NO_DATA = {"writer.lock", "writer.pid"}  # a lock, and who held it last
_PATHS = [str(HERE), str(HERE.parent), str(HERE.parent / "bank"), str(HERE.parent / "golden_banks")]

BANK = """
import sys
from pathlib import Path
from make import write_bank
write_bank(Path(sys.argv[1]))
"""
MEMORY = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from facade import opened, topics
from tiny import tiny_backbone
for mode in ("text", "kv"):
    with opened(Path(sys.argv[1], mode), tiny_backbone(), reading=mode) as memory:
        memory.add(topics())
        memory.delete(["violin"])
        memory.snapshot("s")
        memory.compact()
        answers = [
            memory.ask("glacier or saffron?", max_new_tokens=12, **how)
            for how in ({}, *({"temperature": 1.0, "seed": seed} for seed in (5, 5, 6)))
        ]
        print(json.dumps([[a.text, [(s.id, s.score) for s in a.sources]] for a in answers]))
"""


def child(code, *arguments, hash_seed, epoch):
    path = os.pathsep.join([*_PATHS, *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": str(hash_seed), "TZ": f"UTC{hash_seed}"}
    environment.pop("SOURCE_DATE_EPOCH", None)
    if epoch is not None:
        environment["SOURCE_DATE_EPOCH"] = str(epoch)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300).stdout


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in _NO_DATA)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_equal_calls_make_equal_banks(tmp_path):
    for n in (1, 2):
        child(BANK, tmp_path / str(n), hash_seed=n, epoch=0)
    one, two = (contents(tmp_path / str(n)) for n in (1, 2))
    assert len(one) >= 7 and one == two


def test_only_times_of_commits_and_snapshots_differ_at_another_hour(tmp_path):
    for n in (1, 2):
        child(BANK, tmp_path / str(n), hash_seed=0, epoch=n * 1_000_000)
    one, two = (contents(tmp_path / str(n)) for n in (1, 2))
    differing = {name for name in one if one[name] != two.get(name)}
    assert one.keys() == two.keys() and differing == {"catalog.sqlite", "catalog.seal"}
    catalogs = [found["catalog.sqlite"] for found in (one, two)]
    changed = [n for n, pair in enumerate(zip(*catalogs, strict=True)) if pair[0] != pair[1]]
    with closing(sqlite3.connect(f"file:{tmp_path}/1/catalog.sqlite?mode=ro", uri=True)) as db:
        tables = [db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("arrivals", "snapshots")]
    assert min(tables) > 0 and 0 < len(changed) < 64 * sum(tables), "the texts of times, and their checksums"


def test_equal_memories_give_equal_answers_and_seeds_decide_samples(tmp_path):
    said, repeated = (child(MEMORY, tmp_path / str(n), hash_seed=n, epoch=0) for n in (1, 2))
    assert said == repeated and len(said.splitlines()) == 2  # answers from text and from kv
    for line in said.splitlines():
        greedy, sample, again, other = json.loads(line)
        assert sample == again and sample[0] != other[0] and greedy[1] == sample[1]
    one, two = (contents(tmp_path / str(n)) for n in (1, 2))
    assert len(one) >= 10 and one == two
