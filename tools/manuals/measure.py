"""Questions about real manuals: answers that are right, seconds, and what is said where no document says it.

    python tools/manuals/measure.py --work FOLDER
    python tools/manuals/measure.py --work FOLDER --package-path . --package-path ../older --questions 10

Every `--package-path` is a checkout of this project, whose own code answers in a process of its own; settings of its
memory may follow, as in `.:reader=stock,context_tokens=512`. Questions are asked in turns, so that times of one run can
be compared: each checkout's median is also given over that of the last one. Banks stay in FOLDER for the next run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = ("src", "kernels")  # where a checkout's packages lie


def note(text: str) -> None:
    """Say something that is no result."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@dataclass(frozen=True)
class Tried:
    """A checkout, and settings of its memory."""

    name: str
    tree: Path
    settings: dict[str, Any]

    @classmethod
    def of(cls, text: str) -> Tried:
        """From `TREE[:name=value,...]`; values are JSON where they can be read as such."""
        tree, _, said = text.partition(":")
        settings = {}
        for part in filter(None, said.split(",")):
            name, equals, value = part.partition("=")
            if not equals:
                raise SystemExit(f"{part!r} in {text!r} is not name=value")
            try:
                settings[name] = json.loads(value)
            except ValueError:
                settings[name] = value
        path = Path(tree).resolve()
        if not (path / "src" / "msa_plugin").is_dir():
            raise SystemExit(f"{tree} is no checkout of this project: it has no src/msa_plugin")
        return cls(text, path, settings)

    def bank(self, corpus: Path) -> str:
        """A name for the bank that this checkout makes of a corpus; another adapter makes another one."""
        digest = hashlib.sha256(json.dumps([str(self.tree), self.settings]).encode() + corpus.read_bytes())
        for path in sorted((self.tree / "src" / "msa_plugin" / "adapters").rglob("adapter.*")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


class Worker:
    """A process that answers with a checkout's own code."""

    def __init__(self, tried: Tried, work: Path, corpus: Path) -> None:
        """Opens the memory and adds what it lacks; `ready` says what that took."""
        bank = work / "banks" / tried.bank(corpus)
        bank.parent.mkdir(parents=True, exist_ok=True)
        places = [str(tried.tree / part) for part in PARTS]
        command = [sys.executable, str(HERE / "worker.py"), str(bank), str(corpus), json.dumps(tried.settings)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self.name = tried.name
        self.ready = self._heard()
        if not Path(self.ready["package"]).is_relative_to(tried.tree):
            raise SystemExit(f"{tried.name}: the code that ran is {self.ready['package']}")

    def ask(self, question: str) -> dict[str, Any]:
        """What the checkout answers. Raises SystemExit when its process has ended."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self._heard()

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise SystemExit(
                f"{self.name}: its process ended with {code}, as told above; banks are made anew if removed"
            )
        heard: dict[str, Any] = json.loads(line)
        return heard


def holds(text: str, answers: Sequence[str]) -> bool:
    """Whether an answer stands in `text`, in any case and spacing, and not as a part of a longer word or number.

    Punctuation counts, unlike in the scores of `msa bench`: `orjson.OPT_INDENT_2` holds `OPT_INDENT_2`.
    """
    plain = normalised(text)
    return any(re.search(rf"(?<!\w){re.escape(normalised(answer))}(?!\w)", plain) for answer in answers)


def normalised(text: str) -> str:
    """Lower case, one kind of quotation marks, single blanks."""
    return " ".join(re.sub("[\u2018\u2019\u201c\u201d'\"]", "'", text.lower()).split())


def judged(question: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
    """A record of one answer. Right: it holds an accepted phrase (F1 beside it), or says that there is no answer."""
    from msa_plugin.measuring.metrics import f1

    answers, given = question["answers"], not reply["abstained"]
    scores = {"right": given and holds(reply["text"], answers) if answers else not given}
    if answers:
        scores |= {"f1": f1(reply["text"], answers) if given else 0.0}
        scores |= {"found": reply["first"] == question["positive_ids"]}
    return {**question, **reply, **scores}


def summed(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the answers of one checkout come to."""
    there, absent = [r for r in records if r["answers"]], [r for r in records if not r["answers"]]
    return {
        "answerable": len(there),
        "right": sum(r["right"] for r in there),
        "f1": mean(r["f1"] for r in there) if there else 0.0,
        "right document first": sum(r["found"] for r in there),
        "wrongly abstained": sum(r["abstained"] for r in there),
        "absent": len(absent),
        "rightly abstained": sum(r["right"] for r in absent),
        "seconds": median(r["seconds"] for r in records),
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """One line a checkout."""
    last = list(found.values())[-1]["seconds"]
    lines = [
        "right      F1    right document first   says that it is not there: rightly, wrongly   seconds   over last"
    ]
    for name, s in found.items():
        right, first = (f"{s[key]} of {s['answerable']}" for key in ("right", "right document first"))
        said = f"{s['rightly abstained']} of {s['absent']}", f"{s['wrongly abstained']} of {s['answerable']}"
        times = f"{s['seconds']:9.2f} {s['seconds'] / last if last else 1:11.2f}"
        lines.append(f"{right:8} {s['f1']:6.3f}   {first:22} {said[0]:>34}, {said[1]:8} {times}   {name}")
    return "\n".join(lines)


def drawn(questions: Sequence[dict[str, Any]], count: int | None, seed: int) -> list[dict[str, Any]]:
    """`count` of the questions, of both kinds in about the proportion of all of them."""
    kinds = [[q for q in questions if bool(q["answers"]) is kind] for kind in (True, False)]
    generator = random.Random(seed)
    for kind in kinds:
        generator.shuffle(kind)
    if count is None or count >= len(questions):
        return list(questions)
    absent = round(count * len(kinds[1]) / len(questions))
    return kinds[0][: count - absent] + kinds[1][:absent]


def run(
    tried: Sequence[Tried], work: Path, questions: Sequence[dict[str, Any]], corpus: Path, out: Path | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Every question to every checkout in turn; records by checkout, and as they come as lines of `out`."""
    records: dict[str, list[dict[str, Any]]] = {one.name: [] for one in tried}
    with ExitStack() as stack:
        lines = None if out is None else stack.enter_context(out.open("w", encoding="utf-8"))
        workers = []
        for one in tried:
            workers.append(Worker(one, work, corpus))
            stack.callback(workers[-1].close)
            note(f"{one.name}: {workers[-1].ready}")
        for number, question in enumerate(questions):
            for worker in workers[number % len(workers) :] + workers[: number % len(workers)]:
                record = judged(question, worker.ask(question["question"]))
                records[worker.name].append(record)
                if lines is not None:
                    lines.write(json.dumps({"checkout": worker.name, **record}) + "\n")
                    lines.flush()
                verdict = "right" if record["right"] else "wrong"
                note(f"{question['id']} {verdict} {record['seconds']:6.1f} s {record['text'][:80]!r}")
    return records


def main(words: Sequence[str] | None = None) -> None:
    """Collect, ask, and show; `--data` asks about another data set of the same layout."""
    parser = argparse.ArgumentParser(description="Answers to questions about real manuals.")
    parser.add_argument("--work", type=Path, required=True, help="folder for the documents and the banks")
    parser.add_argument("--package-path", action="append", help="checkout[:setting=value,...]; may be repeated")
    parser.add_argument("--questions", type=int, help="ask only so many")
    parser.add_argument("--seed", type=int, default=0, help="decides which")
    parser.add_argument("--data", type=Path, help="folder of another data set with corpus.jsonl and queries.jsonl")
    parser.add_argument("--out", type=Path, help="file for one JSON line an answer")
    given = parser.parse_args(words)
    tried = [Tried.of(text) for text in dict.fromkeys(given.package_path or [str(ROOT)])]
    sys.path[:0] = [str(HERE), *(str(ROOT / part) for part in PARTS)]
    data = given.data
    if data is None:
        from collect import collect

        data = given.work / "data"
        note(str(collect(data)))
    asked = [json.loads(line) for line in (data / "queries.jsonl").read_text("utf-8").splitlines()]
    if not asked:
        raise SystemExit("no question is left to ask; the lines above say which documents are missing")
    questions = drawn(asked, given.questions, given.seed)
    records = run(tried, given.work, questions, data / "corpus.jsonl", given.out)
    sys.stdout.write(table({name: summed(found) for name, found in records.items()}) + "\n")


if __name__ == "__main__":
    main()
