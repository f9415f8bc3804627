"""One memory over the manuals, asked from outside: questions come in as JSON lines, answers go out as JSON lines.

Nothing but the facade is used (open, add, retrieve, ask), so that it runs on the package as it was at any commit.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve the memory in folder `argv[1]` over the corpus in file `argv[2]`, with the settings in `argv[3]`."""
    bank, corpus, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer

    def say(record: dict[str, Any]) -> None:
        out.write(json.dumps(record, ensure_ascii=False) + "\n")
        out.flush()

    import msa_plugin
    from msa_plugin import LatentMemory

    with LatentMemory.open(bank, **settings) as memory:
        began = time.perf_counter()
        report = memory.add([json.loads(line) for line in corpus.read_text("utf-8").splitlines()])
        added = {"tokens": report.tokens, "seconds": time.perf_counter() - began}
        memory.retrieve("Is everything ready?", k=1)  # what is computed once is not charged to the first question
        memory.ask("Is everything ready?", documents=[], max_new_tokens=1)
        say({"package": str(Path(msa_plugin.__file__).parent), **added})
        for line in sys.stdin:
            say(answered(memory, json.loads(line)))


def answered(memory: Any, question: str) -> dict[str, Any]:
    """The best document, then the answer: its text, sources, seconds, and whether it says that there is none."""
    first = [hit.id for hit in memory.retrieve(question, k=1)]
    began = time.perf_counter()
    answer = memory.ask(question)
    seconds = time.perf_counter() - began
    abstained = bool(getattr(answer, "abstained", False))  # packages before 2026-11-30 always answer
    sources = list(dict.fromkeys(source.id for source in answer.sources))
    spent = {"seconds": seconds, "stages": dict(answer.trace.seconds), "tokens": answer.trace.new_tokens}
    return {"first": first, "text": answer.text, "sources": sources, "abstained": abstained, **spent}


if __name__ == "__main__":
    main()
