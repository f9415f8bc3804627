"""The command line: adding, asking, retrieving, deleting, calibrating, training, and the groups `bank` and `bench`."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msa_plugin import __version__
from msa_plugin.cli import bank, bench, convert
from msa_plugin.cli.adapters import average, calibrate, relevance
from msa_plugin.cli.add import add
from msa_plugin.cli.demo import demo
from msa_plugin.cli.mcp_server import mcp
from msa_plugin.cli.options import (
    AdapterPath,
    At,
    Bank,
    History,
    Json,
    Lexical,
    Mentions,
    Model,
    Namespace,
    Question,
    Reading,
    Recency,
    Snapshot,
    Titles,
    Where,
    check_not_empty,
    empty,
    nothing_found,
    open_bank,
    open_memory,
    parse_filter,
)
from msa_plugin.cli.output import Output, report_error, seconds, set_up_logging
from msa_plugin.cli.shell import shell
from msa_plugin.cli.train import train
from msa_plugin.dates import asof
from msa_plugin.errors import MSAError
from msa_plugin.stems import marked

if TYPE_CHECKING:
    from msa_plugin.types import Hit

_SHOWN = 600  # characters of a passage
app = typer.Typer(
    help="Long-term memory for language models, in a folder. Start with: msa demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(bank.app, name="bank")
app.add_typer(bench.app, name="bench")
app.add_typer(convert.app, name="convert")


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


def ask(
    question: Question,
    bank: Bank = Path("bank"),
    model: Model = None,
    adapter: AdapterPath = None,
    namespace: Namespace = "default",
    where: Where = None,
    snapshot: Snapshot = None,
    at: At = None,
    history: History = False,
    reading: Reading = "auto",
    lexical: Lexical = None,
    titles: Titles = None,
    mentions: Mentions = None,
    recency: Recency = None,
    rounds: Annotated[int | None, typer.Option(help="At most this many rounds of routing.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most this many tokens of answer.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    abstain_below: Annotated[
        float | None,
        typer.Option(
            help="Relevance (0 to 1) below which the memory does not say it; 0: never. [default: the adapter's]"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer a question from the memory, with its sources.

    Below the answer stand the sentences that say it, the documents that were read, and what took how long.
    Example: msa ask "Who built the lighthouse?" --bank bank
    """
    out, wanted = Output(as_json), parse_filter(where)
    asof(at, history)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    if rounds is not None:
        options["max_rounds"] = rounds
    settings = {
        "reading": reading,
        "lexical": lexical,
        "titles": titles,
        "mentions": mentions,
        "recency": recency,
        "abstain_below": abstain_below,
    }
    check_not_empty(bank, namespace, snapshot)
    with open_memory(out, bank, model, adapter, namespace, must_exist=True, snapshot=snapshot, **settings) as memory:
        stream = memory.stream(question, filter=wanted, at=at, history=history, **options)
        for piece in stream:
            out.say(piece, end="")
        answer = stream.answer
    assert answer is not None
    out.say()
    if answer.grounded is False:
        out.say("  (be careful: these words stand in none of the documents that were read)")
    for source in answer.sources:
        for quote in source.quotes:
            sentence = " ".join(quote.sentence.split())
            out.say(f"  says so: [{source.id}] {sentence} (characters {quote.start} to {quote.end})")
    for source in answer.sources:
        place = _where_it_is(source.title, source.heading)
        out.say(
            f"  read: [{source.id}] {place or source.text[:60]} "
            f"(round {source.round}, score {source.score:.2f}, characters {source.start} to {source.end})"
        )
    taken = answer.trace.seconds
    stages = ", ".join(f"{stage} {seconds(value)}" for stage, value in taken.items())
    out.say(f"  took {seconds(sum(taken.values()))}: {stages}")
    out.result(answer)


def retrieve(
    question: Question,
    bank: Bank = Path("bank"),
    model: Model = None,
    adapter: AdapterPath = None,
    namespace: Namespace = "default",
    k: Annotated[int, typer.Option("-k", min=1, help="How many documents, or passages.")] = 10,
    by: Annotated[str, typer.Option(help="What to list: document, or passage.")] = "document",
    where: Where = None,
    snapshot: Snapshot = None,
    at: At = None,
    history: History = False,
    reading: Reading = "auto",
    lexical: Lexical = None,
    titles: Titles = None,
    mentions: Mentions = None,
    recency: Recency = None,
    min_relevance: Annotated[
        float | None, typer.Option(help="Leave out what is less relevant (0 to 1), all of it where nothing fits.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the documents that fit a question, best first.

    Each with its score, its relevance (how likely it holds what was asked for) and its best passage.
    Example: msa retrieve "lighthouses of Scotland" -k 5 --bank bank
    """
    out, wanted = Output(as_json), parse_filter(where)
    asof(at, history)
    settings = {"reading": reading, "lexical": lexical, "titles": titles, "mentions": mentions, "recency": recency}
    if reason := empty(bank, namespace, snapshot):
        out.say(f"nothing found: {reason}")
        out.result([])
        return
    with open_memory(out, bank, model, adapter, namespace, must_exist=True, snapshot=snapshot, **settings) as memory:
        hits = memory.retrieve(  # type: ignore[call-overload]
            question, k, filter=wanted, by=by, min_relevance=min_relevance, at=at, history=history
        )
        reason = "" if hits else nothing_found(memory, wanted, min_relevance)
    for hit in hits:
        _show(out, hit, question)
    if reason:
        out.say(reason)
    out.result(hits)


def _where_it_is(title: str, heading: str) -> str:
    """Title and heading of a passage, once where they are the same."""
    return " > ".join(dict.fromkeys(part for part in (title, heading) if part))


def _show(out: Output, hit: Hit, question: str) -> None:
    """A line with id, title, heading, score and relevance, then the passage, words marked in bold on a terminal."""
    passage = hit.passages[0]
    place = _where_it_is(hit.title, passage.heading)
    judged = "" if hit.relevance is None else f", relevance {hit.relevance:.0%}"
    scored = f"score {hit.score:.3f}{judged}, characters {passage.start} to {passage.end}"
    out.say(f"[{hit.id}] {place}".rstrip() + f"  ({scored})")
    bounds = zip(("from", "until", "replaced by"), hit.validity, strict=True)
    if known := [f"{word} {value}" for word, value in bounds if value is not None]:
        out.say(f"        valid {', '.join(known)}")
    text = " ".join(passage.text.split())
    shown = text if len(text) <= _SHOWN else text[:_SHOWN].rsplit(" ", 1)[0] + " ..."
    out.say_marked(f"        {shown}", marked(shown, question, 8))


def delete(
    ids: Annotated[list[str], typer.Argument(help="Ids of documents to forget.")],
    bank: Bank = Path("bank"),
    namespace: Namespace = "default",
    as_json: Json = False,
) -> None:
    """Forget documents by id. Needs no model; exits with 1 when none of them was there.

    Example: msa delete notes.md --bank bank
    """
    out = Output(as_json)
    with open_bank(bank, read_only=False) as opened:
        deleted, missing = opened.delete(ids, namespace)
    out.say(f"{len(deleted)} deleted" + (f"; not there: {', '.join(missing)}" if missing else ""))
    out.result({"deleted": deleted, "missing": missing})
    if not deleted:
        raise typer.Exit(1)


for _command in (
    demo,
    add,
    ask,
    retrieve,
    shell,
    delete,
    mcp,
    calibrate,
    train,
    average,
    relevance,
):  # as --help lists them
    app.command()(_command)


def main() -> None:
    """Entry point: our errors become one line on stderr and an exit code; typer sees to Ctrl-C and broken pipes."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a document may hold what the terminal's encoding does not
    try:
        app()
    except MSAError as error:
        sys.exit(report_error(error))
    except OSError as error:  # a disk that refuses, outside the bank; a closed pipe has ended the command before
        from msa_plugin.backbone.cache import refused

        sys.exit(report_error(refused(error)))
