"""Fuzz every reader of files: `python tools/reliability/fuzz.py --inputs 100000 --seed 0`.

Each target runs in a child process with limited memory, under an audit of what it opens and runs. Input number N of a
target depends on the seed and N alone: `--only TARGET --first N --inputs 1` repeats it. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import places  # noqa: F401
from fuzz_guard import judge, limited_memory
from fuzz_models import MODELS
from fuzz_targets import PLAIN, Target

TARGETS = {target.name: target for target in (*PLAIN, *MODELS)}
# Of every hundred inputs; those that load a model cost a hundred times what the others cost.
SHARES = {"bank": 0.5, "backbone": 0.5, "checkpoint": 0.5, "export": 0.5, "adapter": 1, "results": 1, "settings": 9}
SHARES |= {"beir": 8, "pdf": 3, "folder": 3, "html": 14, "jsonl": 16, "jsonl.gz": 9, "markdown": 14, "text": 20}
MEMORY = 1 << 30
SHOWN = 5


def fuzz(target: Target, seed: int, first: int, count: int, progress: Path | None = None) -> dict[str, Any]:
    """Run inputs `first` to `first + count` of a target; figures, with the first failures in full."""
    counts = {"accepted": 0, "refused": 0, "failed": 0}
    failures: list[dict[str, Any]] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as parent:
        (Path(parent) / "spare").mkdir()
        target.prepare(Path(parent) / "spare")
        with limited_memory(MEMORY):
            for number in range(first, first + count):
                if progress is not None:
                    progress.write_text(str(number))
                folder = Path(parent) / "input"
                folder.mkdir()
                target.write(Random(f"{seed}/{target.name}/{number}"), folder)
                outcome, why = judge(folder, lambda at=folder: target.read(at))  # type: ignore[misc]
                counts[outcome] += 1
                if outcome == "failed" and len(failures) < SHOWN:
                    failures.append({"number": number, "why": why[-3000:]})
                shutil.rmtree(folder, ignore_errors=True)
    return {**counts, "inputs": count, "seconds": round(time.perf_counter() - began, 1), "failures": failures}


def in_a_child(name: str, seed: int, first: int, count: int) -> dict[str, Any]:
    """`fuzz` in a process of its own, so that a crash of the interpreter is a failure like others."""
    with tempfile.NamedTemporaryFile() as progress:
        command = [sys.executable, __file__, "--child", "--only", name, "--seed", str(seed), "--first", str(first)]
        command += ["--inputs", str(count), "--progress", progress.name]
        done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, check=False)
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return found
        at = int(Path(progress.name).read_text() or first)
    why = {"number": at, "why": f"the process ended with {done.returncode}"}
    return {"accepted": 0, "refused": 0, "failed": 1, "inputs": at - first + 1, "seconds": 0.0, "failures": [why]}


def main() -> None:
    """Read the options, run the targets one after another, print the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--inputs", type=int, default=2000, help="in all, shared out among the targets")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--first", type=int, default=0, help="number of the first input")
    options.add_argument("--only", choices=sorted(TARGETS), help="one target, with all the inputs")
    options.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--progress", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        logging.disable(logging.CRITICAL)  # what is taken out of a file is logged, one line each
        print(json.dumps(fuzz(TARGETS[given.only](), given.seed, given.first, given.inputs, given.progress)))  # noqa: T201
        return
    shares: dict[str, float] = {given.only: 100} if given.only else SHARES
    counts = {}
    for name, share in shares.items():
        counts[name] = in_a_child(name, given.seed, given.first, math.ceil(given.inputs * share / 100))
        print(name, json.dumps(counts[name], indent=1), file=sys.stderr)  # noqa: T201
    total = sum(c["inputs"] for c in counts.values())
    failed = sum(c["failed"] for c in counts.values())
    print(json.dumps({"what": "fuzz", "inputs": total, "failed": failed, "counts": counts, "seed": given.seed}))  # noqa: T201
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
