"""The command line: adding, asking, retrieving, deleting, calibrating, training, and the groups `bank` and `bench`."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from msa_plugin import __version__
from msa_plugin.cli import bank, bench, convert
from msa_plugin.cli.average import average
from msa_plugin.cli.demo import demo
from msa_plugin.cli.mcp_server import mcp
from msa_plugin.cli.options import (
    AdapterPath,
    Bank,
    Json,
    Lexical,
    Model,
    Namespace,
    Reading,
    Titles,
    Where,
    open_bank,
    open_memory,
    parse_filter,
)
from msa_plugin.cli.output import Output, report_error, seconds, set_up_logging
from msa_plugin.cli.train import train
from msa_plugin.errors import IngestError, MSAError

app = typer.Typer(
    help="Long-term latent memory for language models. Start with: msa demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(bank.app, name="bank")
app.add_typer(bench.app, name="bench")
app.add_typer(convert.app, name="convert")
app.command()(demo)
app.command()(train)
app.command()(average)
app.command()(mcp)


def _version(wanted: bool) -> None:
    if wanted:
        Output(as_json=False).say(__version__)
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is going on to stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    set_up_logging(verbose)


@app.command()
def add(
    paths: Annotated[list[str], typer.Argument(help="Files and folders (.txt .md .html .jsonl .pdf), or - for stdin.")],
    bank: Bank = Path("bank"),
    model: Model = None,
    adapter: AdapterPath = None,
    namespace: Namespace = "default",
    reading: Reading = "auto",
    stdin_format: Annotated[str, typer.Option(help="What - is: text (one document) or jsonl (one a line).")] = "text",
    as_json: Json = False,
) -> None:
    """Encode files into the memory. Files already there with the same content cost nothing.

    Example: msa add docs/ notes.md --bank bank
    """
    from msa_plugin.ingest import read_paths

    out = Output(as_json)
    if stdin_format not in ("text", "jsonl"):
        raise IngestError(f"--stdin-format must be text or jsonl, not {stdin_format!r}")
    skipped: list[tuple[str, str]] = []
    documents = read_paths(
        paths,
        stdin_format=stdin_format,  # type: ignore[arg-type]
        on_skip=lambda path, reason: skipped.append((path, reason)),
    )
    with open_memory(out, bank, model, adapter, namespace, reading=reading) as memory:
        report = memory.add(documents, on_invalid="skip")
    left_out = [*skipped, *report.skipped]
    out.say(f"{len(report.added)} added, {len(report.updated)} updated, {len(report.unchanged)} unchanged, "
            f"{len(left_out)} left out; {report.tokens} tokens in {seconds(report.seconds)}")  # fmt: skip
    for path, reason in left_out:
        out.say(f"  left out {path}: {reason}")
    out.result(
        {
            "added": report.added,
            "updated": report.updated,
            "unchanged": report.unchanged,
            "skipped": [list(pair) for pair in left_out],
            "tokens": report.tokens,
            "seconds": report.seconds,
        }
    )


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    bank: Bank = Path("bank"),
    model: Model = None,
    adapter: AdapterPath = None,
    namespace: Namespace = "default",
    where: Where = None,
    reading: Reading = "auto",
    lexical: Lexical = None,
    titles: Titles = None,
    rounds: Annotated[int | None, typer.Option(help="At most this many rounds of routing.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most this many tokens of answer.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Answer a question from the memory, with the documents it was read from.

    Example: msa ask "Who built the lighthouse?" --bank bank
    """
    out, wanted = Output(as_json), parse_filter(where)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    if rounds is not None:
        options["max_rounds"] = rounds
    settings = {"reading": reading, "lexical": lexical, "titles": titles}
    with open_memory(out, bank, model, adapter, namespace, must_exist=True, **settings) as memory:
        stream = memory.stream(question, filter=wanted, **options)
        for piece in stream:
            out.say(piece, end="")
        answer = stream.answer
    assert answer is not None
    out.say()
    for source in answer.sources:
        out.say(f"  [{source.id}] round {source.round}, score {source.score:.2f}: {source.title or source.text[:60]}")
    out.say("  " + ", ".join(f"{stage} {seconds(value)}" for stage, value in answer.trace.seconds.items()))
    out.result(answer)


@app.command()
def retrieve(
    question: Annotated[str, typer.Argument(help="The question.")],
    bank: Bank = Path("bank"),
    model: Model = None,
    adapter: AdapterPath = None,
    namespace: Namespace = "default",
    k: Annotated[int, typer.Option("-k", help="How many documents.")] = 10,
    where: Where = None,
    reading: Reading = "auto",
    lexical: Lexical = None,
    titles: Titles = None,
    as_json: Json = False,
) -> None:
    """List the documents that routing finds for a question, best first.

    Example: msa retrieve "lighthouses of Scotland" -k 5 --bank bank
    """
    out, wanted = Output(as_json), parse_filter(where)
    settings = {"reading": reading, "lexical": lexical, "titles": titles}
    with open_memory(out, bank, model, adapter, namespace, must_exist=True, **settings) as memory:
        hits = memory.retrieve(question, k, filter=wanted)
    for hit in hits:
        out.say(f"{hit.score:6.3f}  [{hit.id}] {hit.title or hit.text[:70]!r}")
    out.result(hits)


@app.command()
def delete(
    ids: Annotated[list[str], typer.Argument(help="Ids of documents to forget.")],
    bank: Bank = Path("bank"),
    namespace: Namespace = "default",
    as_json: Json = False,
) -> None:
    """Forget documents by id; needs no backbone. Exits with 1 when none of them was there.

    Example: msa delete notes.md --bank bank
    """
    out = Output(as_json)
    with open_bank(bank, read_only=False) as opened:
        deleted, missing = opened.delete(ids, namespace)
    out.say(f"{len(deleted)} deleted" + (f"; not there: {', '.join(missing)}" if missing else ""))
    out.result({"deleted": deleted, "missing": missing})
    if not deleted:
        raise typer.Exit(1)


@app.command()
def calibrate(
    paths: Annotated[list[str], typer.Argument(help="Plain text to take statistics from: files, folders, or -.")],
    model: Model = None,
    questions: Annotated[
        Path | None, typer.Option(help="A file with one question a line; a built-in list if absent.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the adapter; the user's cache if absent.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Routing layers, e.g. 2,5; chosen by depth if absent.")] = None,
    dims: Annotated[int, typer.Option(help="Numbers in a routing key.")] = 384,
    pooling: Annotated[int, typer.Option(help="Tokens in a chunk.")] = 32,
    as_json: Json = False,
) -> None:
    """Build a router for a backbone in minutes, from forward passes over plain text, without training.

    Example: msa calibrate docs/ --model ./my-model --out adapter
    """
    from msa_plugin.cli.calibrate import run

    run(Output(as_json), paths, model, questions, to, layers, dims, pooling)


def main() -> None:
    """Entry point: our errors become one line on stderr and an exit code; typer sees to Ctrl-C and broken pipes."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a document may hold what the terminal's encoding does not
    try:
        app()
    except MSAError as error:
        sys.exit(report_error(error))
