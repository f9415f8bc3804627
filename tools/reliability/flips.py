"""Damage every file of a bank, a byte or a page at a time, and see what opening, reading, verify and repair make of it.

    python tools/reliability/flips.py --every 1      # each byte of each file, hours
    python tools/reliability/flips.py --every 97 --repair-every 5

Prints one JSON line of counts. A damage is `refused` (some reads raise an error of ours, all others are right) or
`harmless` (all are right); a repair is `repaired`, or `beyond` (it says that only a backup helps). Failures: `silent`
(wrong data), `raw` (a foreign error), `died` (a signal), `unnamed` (reads were refused, but verify does not name the
file), `unrepaired`, `invented` and `unaccounted` (repair).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import places  # noqa: F401
from bank_builder import FINGERPRINT, encoded, picture, words_of
from make import NAMESPACES, SNAPSHOTS, write_bank

from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.repair import repair_bank
from msa_plugin.bank.verify import verify_bank
from msa_plugin.errors import BankCorruptError, BankNotFoundError, MSAError

FAILURES = ("silent", "raw", "died", "unnamed", "unrepaired", "invented", "unaccounted")
_PAGE = 4096
_NO_DATA = {"writer.lock", "writer.pid", "catalog.head", "catalog.sqlite-shm"}


class Damage(NamedTuple):
    """What is done to the file `name` (relative); `at` is a byte, or says which other file takes part."""

    kind: str
    name: str
    at: int | str = 0


def build(folder: Path, *, unclean: bool = False) -> None:
    """A small bank that has everything; `unclean` as a writer leaves it that died with commits in its log."""
    write_bank(folder)
    if not unclean:
        return
    live = folder.with_name(folder.name + "-live")
    shutil.move(folder, live)
    with MemoryBank.open(live, FINGERPRINT) as bank:
        bank.commit([encoded("in the log", lang="en"), encoded("d0", "a newer text")], NAMESPACES[0])
        bank.delete(["d3"], NAMESPACES[0])
        shutil.copytree(live, folder)
    shutil.rmtree(live)


def damages(folder: Path, every: int, rng: random.Random) -> Iterator[Damage]:
    """A flip in each run of `every` bytes, truncations, zeroed pages, swaps, missing and extra files."""
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    for name, size in files.items():
        for start in range(0, size, every):
            yield Damage("flip", name, start + rng.randrange(min(every, size - start)))
        yield from (Damage("truncate", name, keep) for keep in sorted({0, 1, size // 2, size - 1}) if keep < size)
        yield from (Damage("zero", name, start) for start in range(0, size, _PAGE))
        yield Damage("remove", name)
        yield Damage("grow", name, rng.randrange(1, 5000))
    segments = [name for name in files if name.endswith(".safetensors")]
    yield from (Damage("swap", one, other) for n, one in enumerate(segments) for other in segments[:n])
    yield from (Damage("extra", name) for name in ("notes.txt", "segments/notes.txt", "segments/" + "0" * 32 + "/x"))


def inflict(damage: Damage, folder: Path, rng: random.Random) -> bool:
    """Do it; False where the bytes stay what they were."""
    path = folder / damage.name
    before = path.read_bytes() if path.exists() else b""
    if damage.kind == "flip":
        assert isinstance(damage.at, int)
        changed = bytearray(before)
        changed[damage.at] ^= rng.randrange(1, 256)
        path.write_bytes(changed)
    elif damage.kind == "truncate":
        path.write_bytes(before[: int(damage.at)])
    elif damage.kind == "grow":
        path.write_bytes(before + rng.randbytes(int(damage.at)))
    elif damage.kind == "zero":
        at = int(damage.at)
        path.write_bytes(before[:at] + bytes(len(before[at : at + _PAGE])) + before[at + _PAGE :])
    elif damage.kind == "remove":
        path.unlink()
    elif damage.kind == "swap":
        other = folder / str(damage.at)
        theirs = other.read_bytes()
        other.write_bytes(before)
        path.write_bytes(theirs)
        return theirs != before
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"hello")
    return not path.exists() or path.read_bytes() != before


def read_all(folder: Path) -> dict[str, Any]:
    """Every read path at every moment and in every namespace: what it gave, or the name of our error."""
    found: dict[str, Any] = {}
    for snapshot in SNAPSHOTS:
        try:
            bank = MemoryBank.open(folder, FINGERPRINT, read_only=True, snapshot=snapshot)
        except MSAError as error:
            found[f"{snapshot}"] = error
            continue
        with bank:
            for space in NAMESPACES:
                for name, read in _READS.items():
                    key = f"{snapshot} {space} {name}"
                    try:
                        found[key] = read(bank, space)
                    except MSAError as error:
                        found[key] = error
    return found


_READS: dict[str, Any] = {
    "picture": picture,
    "words": words_of,
    "ids": lambda bank, space: list(bank.iter_ids(space)),
    "get": lambda bank, space: bank.get(["d0", "d1", "d2", "täg", "late", "in the log"], space),
    "lookup": lambda bank, space: bank.lookup(["d0", "d1", "d3", "d6", "late"], space),
    "filtered": lambda bank, space: bank.select(space, {"lang": "en"}).ordinals().tolist(),
    "function": lambda bank, space: bank.select(space, lambda data: "n" in data).ordinals().tolist(),
    "snapshots": lambda bank, space: bank.snapshots(),
    "stats": lambda bank, space: (bank.count(space), bank.stats(space).tokens, bank.stats(space).namespaces),
}


def reading(folder: Path, expected: dict[str, Any]) -> str:
    """`harmless`, `refused`, or what went wrong."""
    try:
        found = read_all(folder)
    except Exception as error:
        return f"raw {error!r:.200}"
    errors = [key for key, value in found.items() if isinstance(value, MSAError)]
    wrong = [key for key, value in found.items() if key not in errors and value != expected[key]]
    if wrong:
        return f"silent {wrong}"
    return "refused" if errors else "harmless"


def naming(folder: Path, damage: Damage, outcome: str) -> str:
    """Whether verify names the file, or has nothing to say of harmless damage."""
    try:
        report = verify_bank(folder)
    except Exception as error:
        return f"raw verify {error!r:.200}"
    names = {damage.name, str(damage.at), damage.name.replace("-wal", "")}
    named = any(name in problem for name in names for problem in report.problems)
    return "" if named or outcome == "harmless" else f"unnamed {report.problems[:1]}"


def repairing(folder: Path, expected: dict[str, Any]) -> str:
    """What repair leaves is right, and what it does not leave it lists."""
    try:
        report = repair_bank(folder)
    except (BankCorruptError, BankNotFoundError):
        return "beyond"  # of repair: nothing to go by
    except Exception as error:
        return f"raw repair {error!r:.200}"
    if not verify_bank(folder).ok:
        return "unrepaired"
    missing = 0
    for space in NAMESPACES:
        originals = {key: expected[f"{key} {space} picture"] for key in SNAPSHOTS}
        with MemoryBank.open(folder, FINGERPRINT, read_only=True) as bank:
            left = picture(bank, space)
        if any(all(value != original.get(name) for original in originals.values()) for name, value in left.items()):
            return f"invented {sorted(left)}"
        missing += len(originals[None].keys() - left.keys() - {*report.salvaged, *report.lost})
    for file in report.files:
        for line in Path(file).read_text(encoding="utf-8").split("\n")[:-1]:
            record = json.loads(line)
            pictures = [found for key, found in expected.items() if key.endswith("picture")]
            texts = [found[record["id"]][1] for found in pictures if record["id"] in found]
            if record["text"] not in [*texts, f"text of {record['id']}"]:
                return f"invented text {record}"
    return "unaccounted" if missing > report.unreadable else "repaired"


def examine(sound: Path, damage: Damage, expected: dict[str, Any], seed: int, repair: bool) -> list[str]:
    """All that one damage leads to."""
    rng = random.Random(seed)
    folder = sound.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    if not inflict(damage, folder, rng):
        return ["no change"]
    spare = sound.with_name("spare")
    shutil.rmtree(spare, ignore_errors=True)
    shutil.copytree(folder, spare)
    outcome = reading(folder, expected)
    found = [outcome, naming(folder, damage, outcome)]
    if repair:
        found.append(repairing(spare, expected))
    return [text for text in found if text]


def _work(connection: Any, sound: Path, expected: dict[str, Any], cases: list[tuple[Damage, int, bool]]) -> None:
    for case in cases:
        connection.send((case[0], examine(sound, case[0], expected, *case[1:])))
    connection.close()


def run(every: int, seed: int, repair_every: int, *, unclean: bool = False) -> tuple[Counter[str], list[str]]:
    """Counts of outcomes and the failures, of one bank, in a child that may die of a damage."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as root:
        sound = Path(root) / "sound"
        build(sound, unclean=unclean)
        shutil.copytree(sound, Path(root) / "read")
        expected = read_all(Path(root) / "read")
        chosen = list(damages(sound, every, rng))
        cases = [(damage, rng.randrange(2**32), n % repair_every == 0) for n, damage in enumerate(chosen)]
        counts: Counter[str] = Counter()
        failures: list[str] = []
        while cases:
            here, there = multiprocessing.Pipe(duplex=False)
            child = multiprocessing.get_context("fork").Process(target=_work, args=(there, sound, expected, cases))
            child.start()
            there.close()
            done = 0
            with suppress(EOFError):
                while True:
                    damage, outcomes = here.recv()
                    done += 1
                    counts["damages"] += 1
                    counts.update(text.split(" ")[0] if text != "no change" else text for text in outcomes)
                    failures += [f"{damage}: {text}" for text in outcomes if text.split(" ")[0] in FAILURES]
            child.join()
            if done < len(cases):
                counts.update(("damages", "died"))
                failures.append(f"{cases[done][0]}: died with {child.exitcode}")
            cases = cases[done + 1 :]
    return counts, failures


def main() -> None:
    """Both banks, closed and unclean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=97, help="one flip in so many bytes of each file")
    parser.add_argument("--repair-every", type=int, default=10, help="repair after one damage in so many")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"what": "flips", "every": arguments.every, "seed": arguments.seed}
    failed = False
    for name, unclean in (("closed", False), ("unclean", True)):
        start = time.monotonic()
        counts, failures = run(arguments.every, arguments.seed, arguments.repair_every, unclean=unclean)
        sys.stderr.writelines(f"{name}: {failure}\n" for failure in failures)
        figures[name] = {**counts, "seconds": round(time.monotonic() - start)}
        failed = failed or bool(failures)
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
