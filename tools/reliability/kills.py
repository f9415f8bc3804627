"""Kill a process that changes a bank, again and again, and look at what it left.

    python tools/reliability/kills.py --kills 1000 --every-point --hits 3 --facade 100

A child makes seeded random changes, one after another, and acknowledges each. The parent kills it (SIGKILL): at random
moments of a change, or, with `--every-point`, when it passes a named fault point for the n-th time. Then the bank must
open, hold exactly what was acknowledged, or that and the one change in flight as a whole, and verify; the next child
goes on with it. A plain dictionary says what it must hold.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import places  # noqa: F401
from kill_levels import BankLevel, FacadeLevel, matching
from kill_model import Generator, Model, Op
from kill_repairs import APART, kills_of_migrations, kills_of_repairs

from msa_plugin.bank import faults
from msa_plugin.bank.verify import verify_bank

POINTS = tuple(faults.POINTS)
_PATIENCE = 120.0  # seconds; a child that says nothing for so long hangs


class Child:
    """A forked process that makes the changes it is sent. It knows the fault point at which it is to die, if any."""

    def __init__(self, level: BankLevel, folder: Path, seen: mmap.mmap, point: str = "", hit: int = 1) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._orders)
                self._live(level, folder, seen, (point, hit), os.fdopen(orders), answers)
            except BaseException as error:
                os.write(answers, f"failed: {error!r}\n".encode())
            finally:
                os._exit(1)
        os.close(orders)
        os.close(answers)

    def _live(self, level, folder, seen, death, orders, answers) -> None:
        def passed(point: str, left: list[int] = [death[1]]) -> None:  # noqa: B006 - a counter
            seen[0] = POINTS.index(point) + 1
            left[0] -= point == death[0]
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        level.prepare()
        with faults.injected(passed), level.open(folder) as handle:
            os.write(answers, b"ready\n")
            for line in orders:
                level.apply(handle, json.loads(line))
                seen[0] = 0
                os.write(answers, b"done\n")

    def send(self, op: Op) -> None:
        os.write(self._orders, (json.dumps(op) + "\n").encode())

    def answer(self, seconds: float = _PATIENCE) -> str | None:
        """What it says within so many seconds; "" when it is dead, None when it says nothing."""
        if not select.select([self._answers], [], [], max(seconds, 0.0))[0]:
            return None
        return os.read(self._answers, 1 << 16).decode()

    def kill(self) -> str:
        """Kill it; returns what it had said before that and nobody had read."""
        os.kill(self.pid, signal.SIGKILL)
        rest = self.answer()
        self.bury()
        return rest or ""

    def bury(self) -> None:
        os.waitpid(self.pid, 0)
        os.close(self._orders)
        os.close(self._answers)


class World:
    """One bank, its model, and the children that change it."""

    def __init__(self, level: BankLevel, folder: Path, seed: int) -> None:
        self.level, self.folder, self.model = level, folder, Model()
        self.rng = random.Random(seed)
        self.generator = Generator(seed, level.spaces, long="add-long" in level.kinds)
        self.seen = mmap.mmap(-1, 1)  # shared with the children: the last point passed
        self.took: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.killed_in: Counter[str] = Counter()
        self.last_points: Counter[str] = Counter()

    def random_kill(self) -> None:
        """A few changes, the last of which is killed at a random moment of the time that it usually takes."""
        child = Child(self.level, self.folder, self.seen)
        self._expect(child.answer(), "ready\n")
        for _ in range(self.rng.randint(0, 2)):
            self._make(child, self.generator.next(self.model))
        op = self.generator.next(self.model)
        delay = self.rng.uniform(0, 0.6 * self.took.get(op["op"], 0.02))
        child.send(op)
        said = child.answer(delay) or ""
        said += child.kill()
        point = self.seen[0]
        if said == "done\n":
            self._acknowledged(op)
            self.counts["after its acknowledgement"] += 1
            return self._check(None)
        self._expect(said, "")
        self.last_points[POINTS[point - 1] if point else "before any point"] += 1
        return self._check(op)

    def point_kill(self, point: str, hit: int) -> bool:
        """Changes until a child passes `point` for the `hit`-th time and dies there; False if it never does."""
        child = Child(self.level, self.folder, self.seen, point, hit)
        if said := child.answer():
            self._expect(said, "ready\n")
            for kind in self._kinds(point) * (2 * hit):
                op = self.generator.next(self.model, kind)
                if self._make(child, op) == "":
                    child.bury()
                    self._check(op)
                    return True
            child.kill()
            return False
        child.bury()  # while opening
        self._check(None)
        return True

    def _kinds(self, point: str) -> list[str]:
        """Kinds of changes that get to `point`, each in turn."""
        if point == "log.moved":
            return ["add-long"]
        return ["add", "add", "delete", "compact", "snapshot", "add", "compact", "drop"]

    def _make(self, child: Child, op: Op) -> str:
        began = time.monotonic()
        child.send(op)
        said = child.answer()
        if said == "":
            return ""
        self._expect(said, "done\n")
        took = time.monotonic() - began
        self.took[op["op"]] = 0.8 * self.took.get(op["op"], took) + 0.2 * took
        self._acknowledged(op)
        return "done"

    def _expect(self, said: str | None, expected: str) -> None:
        assert said == expected, f"the child said {said!r}, not {expected!r}"

    def _acknowledged(self, op: Op) -> None:
        self.model = self.model.after(op)
        self.counts["changes acknowledged"] += 1

    def _check(self, in_flight: Op | None) -> None:
        """Open what the killed child left; go on from there."""
        self.counts["kills"] += 1
        after = self.model.after(in_flight)
        found = matching(self.level, self.folder, [self.model, after])
        assert found is not None, f"neither what was acknowledged nor that and the change in flight: {in_flight}"
        report = verify_bank(self.folder)
        assert report.ok, report.problems
        if in_flight is not None:
            self.killed_in[in_flight["op"]] += 1
            which = "absent" if found == self.model else "whole"
            self.counts["in flight, " + ("which shows nothing" if after == self.model else which)] += 1
        self.model = found


def random_kills(level: BankLevel, folder: Path, *, kills: int, seed: int) -> dict[str, object]:
    """Figures of so many kills at random moments of one bank's life."""
    world = World(level, folder, seed)
    try:
        while world.counts["kills"] < kills:
            world.random_kill()
    except Exception as error:
        raise AssertionError(f"kill {world.counts['kills'] + 1} of seed {seed}: {error!r}") from error
    return {"counts": world.counts, "in": world.killed_in, "last point passed": world.last_points}


def kills_at_points(level: BankLevel, folder: Path, *, hits: int, seed: int) -> dict[str, object]:
    """Figures of kills at every point (but `APART`), when it is passed the first to the `hits`-th time."""
    world, at = World(level, folder / "bank", seed), Counter()
    for point in POINTS:
        for hit in range(1, hits + 1) if point not in APART else ():
            new = point.startswith(("create.", "seal."))
            here = World(level, folder / f"new-{point}", seed) if new else world
            try:
                at[point] += here.point_kill(point, 1 if new else hit)
            except Exception as error:
                raise AssertionError(f"{point}, hit {hit}, seed {seed}: {error!r}") from error
            if new:
                world.counts.update(here.counts)
                break  # a bank is made once
    return {"counts": world.counts, "in": world.killed_in, "at": at}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills at random moments, of the bank")
    parser.add_argument("--facade", type=int, default=0, help="kills at random moments, through LatentMemory")
    parser.add_argument("--every-point", action="store_true", help="kills at every named fault point")
    parser.add_argument("--hits", type=int, default=3, help="kills at each point")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    figures: dict[str, object] = {"what": "kills", "seed": given.seed}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        figures["random"] = random_kills(BankLevel(), root / "random", kills=given.kills, seed=given.seed)
        if given.every_point:
            figures["points"] = kills_at_points(BankLevel(), root / "points", hits=given.hits, seed=given.seed)
            figures["repairs"] = kills_of_repairs(root / "repairs")
            figures["migrations"] = kills_of_migrations(root / "migrations")
        if given.facade:
            level = FacadeLevel(root / "scratch")
            figures["facade"] = random_kills(level, root / "facade", kills=given.facade, seed=given.seed)
    figures["seconds"] = round(time.monotonic() - began, 1)
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
