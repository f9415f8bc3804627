"""`msa demo`: the whole way from documents to answers, on the sample corpus."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msa_plugin.cli.options import AdapterPath, Json, Model, Reading
from msa_plugin.cli.output import Output, seconds, size

if TYPE_CHECKING:
    from msa_plugin.data import SampleQuestion
    from msa_plugin.memory import LatentMemory
    from msa_plugin.types import Answer


def demo(
    bank: Annotated[
        Path, typer.Option("--bank", "-b", help="Folder for the demo's bank; kept for the next run.")
    ] = Path("demo-bank"),
    model: Model = None,
    adapter: AdapterPath = None,
    reading: Reading = "auto",
    count: Annotated[
        int, typer.Option("--questions", help="How many of the twelve sample questions to ask.", min=1)
    ] = 5,
    as_json: Json = False,
) -> None:
    """Encode a sample corpus of about 40 short documents and ask it five questions.

    Example: msa demo
    """
    from msa_plugin.backbone.backbone import Backbone
    from msa_plugin.data import sample_documents, sample_questions
    from msa_plugin.memory import LatentMemory

    out = Output(as_json)
    out.note("loading the backbone (the first time converts it, about 20 s) ...")
    began = perf_counter()
    backbone = Backbone.load(model)
    out.say(f"{backbone.name} on {backbone.device}, loaded in {seconds(perf_counter() - began)}")
    with LatentMemory.open(bank, model=backbone, adapter=adapter, reading=reading) as memory:
        report = memory.add(sample_documents())
        stored = memory.stats()
    out.say(
        f"{len(report.added)} documents added, {len(report.unchanged)} already there: "
        f"{report.tokens} tokens encoded in {seconds(report.seconds)}; "
        f"the bank in {bank}/ takes {size(stored.bytes_total)}, {size(stored.bytes_keys)} of it routing keys"
    )
    # Opened again, because a memory must survive its process.
    with LatentMemory.open(bank, model=backbone, adapter=adapter, read_only=True, reading=reading) as memory:
        answers = [_ask(out, memory, question) for question in sample_questions()[:count]]
    right = sum(item["expected_in_answer"] for item in answers)
    found = sum(item["sources_found"] for item in answers)
    out.say(f"\n{right} of {len(answers)} answers hold the expected words; all documents needed were read for {found}.")
    out.result({"add": asdict(report), "stats": asdict(stored), "answers": answers})


def _ask(out: Output, memory: LatentMemory, question: SampleQuestion) -> dict[str, Any]:
    out.say(f"\n[bold]Q ({question.hops} hop{'s'[: question.hops - 1]})[/bold] ", end="", markup=True)
    out.say(question.question)
    out.say("[bold]A[/bold] ", end="", markup=True)
    stream = memory.stream(question.question)
    for piece in stream:
        out.say(piece, end="")
    answer = stream.answer
    assert answer is not None
    out.say()
    _show_sources(out, answer, question)
    read = {source.id for source in answer.sources}
    return {
        "question": question.question,
        "expected": list(question.answers),
        "expected_in_answer": any(a.lower() in answer.text.lower() for a in question.answers),
        "sources_found": set(question.positive_ids) <= read,
        "answer": asdict(answer),
    }


def _show_sources(out: Output, answer: Answer, question: SampleQuestion) -> None:
    for number in sorted({source.round for source in answer.sources}):
        read = [
            f"{s.id} {s.score:.2f}" + (" *" if s.id in question.positive_ids else "")
            for s in answer.sources
            if s.round == number
        ]
        out.say(f"   round {number}: {', '.join(read)}")
    spent = ", ".join(f"{stage} {seconds(value)}" for stage, value in answer.trace.seconds.items() if value >= 0.0005)
    out.say(f"   expected {question.answers[0]!r} (* marks the documents needed); {spent}")
