"""`msa bench absence`: whether a memory says that it does not know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from msa_plugin.cli.options import AdapterPath, Json, Model
from msa_plugin.cli.output import Output


def register(app: typer.Typer) -> None:
    """Add the command to `msa bench`."""
    app.command()(absence)


def absence(
    data: Annotated[Path, typer.Option("--data", "-d", help="A data set, or a folder of them.")],
    sets: Annotated[str | None, typer.Option(help="Only these data sets, separated by commas.")] = None,
    questions: Annotated[int, typer.Option(help="Questions of each data set, at most.", min=1)] = 200,
    passages: Annotated[int, typer.Option(help="Passages of each data set, at most; gold ones always.", min=1)] = 2000,
    answers: Annotated[int, typer.Option(help="How many of the questions are answered, each in three ways.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="At most this many tokens of answer.", min=1)] = 32,
    banks: Annotated[Path, typer.Option(help="Where the encoded passages are kept for another time.")] = Path(
        "absence-banks"
    ),
    model: Model = None,
    adapter: AdapterPath = None,
    seed: Annotated[int, typer.Option(help="Which questions and passages.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Questions with their answer in memory and with it taken away: relevance, and how often the memory says so.

    The answer is taken away in two ways: the gold documents (gold), and all that hold an accepted answer (answer).

    Example: msa bench absence --data data/dev --sets nq,popqa --answers 100
    """
    from msa_plugin.backbone.backbone import Backbone
    from msa_plugin.bench import absence as bench
    from msa_plugin.bench.datasets import find_datasets, load_dataset
    from msa_plugin.memory import LatentMemory

    out = Output(as_json)
    wanted = None if sets is None else {name.strip() for name in sets.split(",")}
    paths = [path for path in find_datasets(data) if wanted is None or path.resolve().name in wanted]
    out.note(f"loading {model or 'the default backbone'} ...")
    backbone = Backbone.load(model)
    rows = []
    for path in paths:
        sample = bench.AbsenceSample.of(load_dataset(path), questions, passages, seed)
        with LatentMemory.open(banks / sample.dataset.name, model=backbone, adapter=adapter) as memory:
            room = bench.Room(memory, sample)
            rows.append(bench.run(room, answers=answers, on_step=_noted(out), max_new_tokens=max_new_tokens))
    out.say(bench.table(rows))
    out.result(rows)


def _noted(out: Output) -> Callable[[str, int, int], None]:
    def note(what: str, done: int, total: int) -> None:
        if done % 25 == 0:
            out.note(f"{what}: {done} of {total} questions")

    return note
