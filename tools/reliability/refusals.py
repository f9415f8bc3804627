"""A disk that refuses: system calls below the bank fail one after another, in every operation, and it must hold.

    python tools/reliability/refusals.py --most 1000

Python's and SQLite's calls are met alike, by a small library (`refuse.c`, built on the spot) that a child process
preloads. For each operation and each kind of refusal, the n-th call fails, for n up to the number of calls (or for
`--most` of them, spread evenly): once only, for good, or followed by SIGKILL. Then the disk is well again, and the bank
must be as before or as after, still usable by the same handle and by a new one, and sound.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import places  # noqa: F401
from bank_builder import NS, encoded, open_bank, picture, segment_folders
from operations import OPERATIONS, fresh, make_seed, outcome, state

from msa_plugin.bank.verify import verify_bank
from msa_plugin.errors import BankError, BankReadOnlyError

# Name: the call, the error number, and whether a refused write leaves half of itself behind.
KINDS = {
    "fsync fails": ("sync", errno.EIO, 0),
    "disk full": ("write", errno.ENOSPC, 0),
    "disk full, half written": ("write", errno.ENOSPC, 1),
    "write error": ("write", errno.EIO, 0),
    "short write": ("write", 0, 1),
    "read error": ("read", errno.EIO, 0),
    "rename refused": ("rename", errno.EIO, 0),
    "read-only": ("create", errno.EROFS, 0),
    "cannot truncate": ("truncate", errno.EIO, 0),
}
ENDINGS = ("once", "for good", "then killed")
ADVICE = re.compile(r"free space|repair the disk|msa bank verify|make it writable|repeat|from a backup|cannot be read")


def reopen(bank):
    """Opening is an operation too; it changes nothing."""
    open_bank(bank.path).close()


def read(bank):
    """So is reading."""
    picture(bank)


def create(bank):
    """And making a bank where there is none."""
    with open_bank(bank.path / "inner") as inner:
        inner.commit([encoded("first")], NS)


ALL = {**OPERATIONS, "reopen": reopen, "read": read, "create": create}


def build(folder: Path) -> Path:
    """Compile the library into `folder`. Raises FileNotFoundError without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        raise FileNotFoundError("a C compiler on Linux is needed")
    library = folder / "refuse.so"
    source = str(Path(__file__).parent / "refuse.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), source, "-ldl"], check=True)
    return library


class Disk:
    """The preloaded library."""

    def __init__(self, library: str, folder: Path) -> None:
        self._c = ctypes.CDLL(library)
        self._c.refuse_seen.restype = ctypes.c_long
        self._below = os.fsencode(folder)

    def refuse(self, kind: str, at: int, ending: str) -> None:
        call, number, half = KINDS[kind]
        times = ctypes.c_long(0 if ending == "for good" else 1)
        self._c.refuse_arm(self._below, call.encode(), ctypes.c_long(at), times, number, half)

    def well(self) -> int:
        """Refuse nothing more; returns how many calls of the kind there were."""
        self._c.refuse_disarm()
        return self._c.refuse_seen()


class Trial:
    """One operation, over and over, on copies of one bank."""

    def __init__(self, name: str, disk: Disk, seed: Path, folder: Path) -> None:
        self.name, self.operation, self.disk, self.seed, self.folder = name, ALL[name], disk, seed, folder
        self.states = outcome(self.operation, seed, folder)
        self.counts: Counter[str] = Counter()

    def run(self, kind: str, most: int) -> None:
        """Every ending, at `most` calls of a kind."""
        with open_bank(fresh(self.seed, self.folder)) as bank:
            self.disk.refuse(kind, 0, "once")
            self.operation(bank)
            calls = self.disk.well()
        for n in range(min(calls, most)):
            for ending in ENDINGS:
                self.counts["trials"] += 1
                fresh(self.seed, self.folder)
                at = 1 + n * calls // min(calls, most)
                where = f"{self.name}: {kind} at call {at} of {calls}, {ending}"
                try:
                    self._killed(kind, at) if ending == "then killed" else self._alive(kind, at, ending)
                    self._sound()
                except Exception as error:
                    raise AssertionError(f"{where}: {error!r}") from error

    def _refused(self, bank, kind: str, at: int, ending: str) -> bool:
        """Whether the operation failed, as it should where it cannot be done: with our error, which says what to do."""
        self.disk.refuse(kind, at, ending)
        try:
            self.operation(bank)
        except BankError as error:
            assert ADVICE.search(str(error)), f"no advice in: {error}"
            assert kind != "read-only" or isinstance(error, BankReadOnlyError) or "unable to open" in str(error), error
            return True
        finally:
            self.disk.well()
        return False

    def _alive(self, kind: str, at: int, ending: str) -> None:
        with open_bank(self.folder) as bank:
            refused = self._refused(bank, kind, at, ending)
            bank.refresh()
            found = state(bank)
            assert found in self.states, "a mix"
            assert refused or found == self.states[1], "acknowledged, and yet it did not happen"
            self.counts["refused" if refused else "overcome"] += 1
            if found == self.states[0]:
                self.operation(bank)
                assert state(bank) == self.states[1], "the handle is not usable any more"

    def _killed(self, kind: str, at: int) -> None:
        """The same, but the process dies right after: nothing that failed may come back in part."""
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            try:
                refused = self._refused(open_bank(self.folder), kind, at, "once")
                os.write(writing, b"refused" if refused else b"done")
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        assert answer, "it raised what is no error of ours"
        with open_bank(self.folder) as bank:
            found = state(bank)
            assert found in self.states, "a mix"
            assert answer == b"refused" or found == self.states[1], "acknowledged, and yet it did not happen"

    def _sound(self) -> None:
        with open_bank(self.folder) as bank:
            before = picture(bank)
            report = verify_bank(self.folder)
            assert report.ok, report.problems
            bank.commit([encoded("later")], NS)
            assert set(picture(bank)) == {*before, "later"}
            assert len(segment_folders(self.folder)) == bank.stats(NS).segments, "folders that nobody names"


def run(library: Path, *, most: int, operations: list[str], kinds: list[str]) -> dict[str, object]:
    """Figures of the whole run, made in a child that preloads `library`. Raises AssertionError with what went wrong."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(library), "--most", str(most)]
        + [f"--operation={name}" for name in operations]
        + [f"--kind={name}" for name in kinds],
        env={**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def _child(library: str, most: int, operations: list[str], kinds: list[str]) -> dict[str, object]:
    began, counts = time.monotonic(), Counter()
    fast = Path("/dev/shm")  # nothing here depends on a real disk
    with tempfile.TemporaryDirectory(dir=fast if fast.is_dir() else None) as root:
        disk = Disk(library, Path(root) / "bank")
        seed = make_seed(Path(root) / "seed")
        for name in operations:
            trial = Trial(name, disk, seed, Path(root) / "bank")
            for kind in kinds:
                trial.run(kind, most)
            counts.update(trial.counts)
    seconds = round(time.monotonic() - began, 1)
    return {"what": "refusals", "counts": counts, "operations": operations, "kinds": kinds, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=8, help="calls of a kind to refuse in each operation")
    parser.add_argument("--operation", action="append", choices=ALL, help="repeatable; default: all")
    parser.add_argument("--kind", action="append", choices=KINDS, help="repeatable; default: all")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    operations, kinds = given.operation or list(ALL), given.kind or list(KINDS)
    if given.child:
        figures = _child(given.child, given.most, operations, kinds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            figures = run(build(Path(folder)), most=given.most, operations=operations, kinds=kinds)
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
