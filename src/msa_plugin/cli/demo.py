"""`msa demo`: the whole way from documents to answers, on the sample corpus."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msa_plugin.cli.options import AdapterPath, Json, Model, Reading
from msa_plugin.cli.output import Output, seconds, size

_SHOWN = 72  # characters of a passage

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
    """Put 42 short documents into a memory and ask it questions.

    Example: msa demo
    """
    from msa_plugin.backbone.backbone import Backbone
    from msa_plugin.data import sample_documents, sample_questions
    from msa_plugin.memory import LatentMemory

    out = Output(as_json)
    out.say(
        "A memory is a folder. A small language model reads each document once and keeps its own notes of it there;"
    )
    out.say(
        "with these it finds what a question needs, reads the passages, and answers. No embedding model, no server.\n"
    )
    out.note("loading the language model (the first time converts it, about 20 s) ...")
    began = perf_counter()
    backbone = Backbone.load(model)
    out.say(f"{backbone.name} on {backbone.device}, loaded in {seconds(perf_counter() - began)}")
    with LatentMemory.open(bank, model=backbone, adapter=adapter, reading=reading) as memory:
        report = memory.add(sample_documents())
        stored = memory.stats()
    took = f": {report.tokens:,} tokens (about {report.tokens * 3 // 4:,} words) in {seconds(report.seconds)}"
    out.say(
        f"{len(report.added)} documents read{took if report.added else ''}; {len(report.unchanged)} known already. "
        f"{bank}/ takes {size(stored.bytes_total)}. It is closed and opened again now, as after a restart."
    )
    # Opened again, because a memory must survive its process.
    with LatentMemory.open(bank, model=backbone, adapter=adapter, read_only=True, reading=reading) as memory:
        answers = [_ask(out, memory, question) for question in sample_questions()[:count]]
    right = sum(item["expected_in_answer"] for item in answers)
    found = sum(item["sources_found"] for item in answers)
    out.say(f"\n{right} of {len(answers)} answers hold the expected words; all documents needed were read for {found}.")
    out.say(f'Ask your own: msa ask -b {bank} "..."   add your own: msa add -b {bank} FILES   msa shell -b {bank}')
    out.result({"add": asdict(report), "stats": asdict(stored), "answers": answers})


def _ask(out: Output, memory: LatentMemory, question: SampleQuestion) -> dict[str, Any]:
    about = "one document" if question.hops == 1 else "two documents, the first of which leads to the second"
    out.say("\n[bold]Question[/bold]  ", end="", markup=True)
    out.say(f"{question.question}  (needs {about})")
    out.say("[bold]Answer[/bold]    ", end="", markup=True)
    began = perf_counter()
    stream = memory.stream(question.question)
    for piece in stream:
        out.say(piece, end="")
    took = perf_counter() - began
    answer = stream.answer
    assert answer is not None
    right = any(a.lower() in answer.text.lower() for a in question.answers)
    out.say(f"   [{'right' if right else f'wrong: it is {question.answers[0]}'}, {seconds(took)}]")
    _show_sources(out, answer, question)
    read = {source.id for source in answer.sources}
    return {
        "question": question.question,
        "expected": list(question.answers),
        "expected_in_answer": right,
        "sources_found": set(question.positive_ids) <= read,
        "answer": asdict(answer),
    }


def _show_sources(out: Output, answer: Answer, question: SampleQuestion) -> None:
    """Each document read, whether it was needed, and how it begins."""
    for source in answer.sources:
        needed = "needed" if source.id in question.positive_ids else "not needed"
        text = " ".join(source.text.split())
        out.say(f"  read    {source.title} ({needed}): {text[:_SHOWN]}{'...' if len(text) > _SHOWN else ''}")
