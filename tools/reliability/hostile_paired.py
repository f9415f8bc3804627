"""Whether markers in a question harm retrieval more than other tokens: `python tools/reliability/hostile_paired.py`.

Each marker is put into each question, and so are, at the same place, as many tokens of neutral words, and the marker's
own tokens in another order, which say nothing. Counts in how many trials the best document is another one than without
them, and compares by sign tests. `--data` names a data set (docs/benchmarks.md); without it the project's sample is
used. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from hostile import TEXTS, insert, neutral

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.data.datasets import Dataset, load_dataset, sample_dataset
from msa_plugin.memory import LatentMemory

CONTROLS = ("neutral", "shuffled")


def shuffled(rng: Random, backbone: Backbone, what: str) -> str:
    """The tokens of `what` in another order."""
    ids = backbone.tokenize(what)
    for _ in range(10):
        rng.shuffle(ids)
        if backbone.detokenize(ids).strip() != what.strip():
            break
    return backbone.detokenize(ids)


def sign_test(ups: int, downs: int) -> float:
    """How likely a split at least as uneven is where both are equally likely (two-sided)."""
    n = ups + downs
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(max(ups, downs), n + 1)) / 2**n)


def compare(backbone: Backbone, data: Dataset, seeds: range) -> dict[str, Any]:
    """Changes by marker, and a sign test against each control.

    Trials of one question are not independent, so the test is over questions: those where markers changed more trials
    than the control did, against those where they changed fewer.
    """
    counts: dict[str, Counter[str]] = {what: Counter() for what in TEXTS["marker"]}
    splits = {name: Counter[str]() for name in CONTROLS}
    with tempfile.TemporaryDirectory() as folder, LatentMemory.open(Path(folder) / "bank", model=backbone) as memory:
        memory.add(data.documents)
        for question in data.questions:
            plain = memory.retrieve(question.text, 1)[0].id
            changed: Counter[str] = Counter()
            for what, count in counts.items():
                for seed in seeds:
                    where = f"{seed}/{question.id}/{what}"
                    texts = {
                        "marker": what,
                        "neutral": neutral(Random(where), memory, what),
                        "shuffled": shuffled(Random(where), backbone, what),
                    }
                    for name, text in texts.items():
                        asked = insert(Random(where), question.text, text)
                        differs = memory.retrieve(asked, 1)[0].id != plain
                        count[name] += differs
                        changed[name] += differs
                    count["trials"] += 1
            for name, split in splits.items():
                split["more"] += changed["marker"] > changed[name]
                split["fewer"] += changed["marker"] < changed[name]
    tests = {name: {**split, "p": round(sign_test(split["more"], split["fewer"]), 4)} for name, split in splits.items()}
    total = sum(counts.values(), Counter[str]())
    return {"markers": counts, "all": total, "questions against": tests}


def main() -> None:
    """Read the options, measure, print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, help="folder of a data set")
    options.add_argument("--questions", type=int, default=12)
    options.add_argument("--documents", type=int, default=42, help="at least; those that the questions need are there")
    options.add_argument("--seeds", type=int, default=1, help="places and controls for each marker and question")
    options.add_argument("--seed", type=int, default=0, help="the first of them")
    given = options.parse_args()
    data = sample_dataset() if given.data is None else load_dataset(given.data)
    questions = data.questions[: given.questions]
    needed = {name for q in questions for name in q.positives}
    documents = sorted(data.documents, key=lambda d: d.id not in needed)[: max(given.documents, len(needed))]
    data = Dataset(data.name, tuple(documents), tuple(questions))
    counts = compare(Backbone.load(), data, range(given.seed, given.seed + given.seeds))
    sizes = {"data": data.name, "questions": len(questions), "documents": len(documents), "seeds": given.seeds}
    print(json.dumps({"what": "hostile, paired", "counts": counts, **sizes, "seed": given.seed}))  # noqa: T201


if __name__ == "__main__":
    main()
