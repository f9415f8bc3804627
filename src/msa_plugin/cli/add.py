"""`msa add`: files and folders into the memory, with what was left out and why."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msa_plugin.bank.scopes import grouped
from msa_plugin.cli.options import (
    AdapterPath,
    Bank,
    Json,
    Model,
    Namespace,
    Reading,
    open_memory,
    word_of,
)
from msa_plugin.cli.output import Output, seconds
from msa_plugin.progress import ProgressState, command_progress

if TYPE_CHECKING:
    from msa_plugin.ingest import FilesReport
    from msa_plugin.ingest.adding import FilesProgress

_NAMED = 20  # files that are named one by one for the same reason
_EVERY = 5.0  # seconds between two lines, where there is no terminal


def add(
    paths: Annotated[
        list[str], typer.Argument(help="Files and folders (any text, .html, .jsonl, .pdf), or - for stdin.")
    ],
    bank: Bank = Path("bank"),
    model: Model = None,
    adapter: AdapterPath = None,
    namespace: Namespace = "default",
    reading: Reading = "auto",
    prune: Annotated[
        bool, typer.Option("--prune", help="Forget documents from these folders whose files are gone.")
    ] = False,
    valid_from: Annotated[
        str | None, typer.Option(help="Date from which these files are found (without a zone: UTC).")
    ] = None,
    valid_until: Annotated[str | None, typer.Option(help="Date from which they are found no more.")] = None,
    replaces: Annotated[list[str] | None, typer.Option(help="Id of a document that these supersede.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when anything was left out.")] = False,
    encoding: Annotated[
        str | None, typer.Option("--encoding", help="Encoding of all text, e.g. cp1252. [default: found out]")
    ] = None,
    stdin_format: Annotated[
        str,
        typer.Option(help="What - is: text (one document) or jsonl (one a line).", callback=word_of("text", "jsonl")),
    ] = "text",
    as_json: Json = False,
) -> None:
    """Put files and folders into the memory. Files already there with the same content cost nothing.

    Files that cannot be read are left out and named. Work is kept as it goes: run the same command again after an
    interruption. Example: msa add docs/ notes.md --bank bank
    """
    from msa_plugin.ingest.decoding import check_encoding
    from msa_plugin.ingest.files import list_files

    out = Output(as_json)
    if encoding is not None:
        check_encoding(encoding)
    list_files(paths, lambda path, reason: None)  # a mistyped path is told before a backbone is loaded
    from msa_plugin.ingest import add_files
    from msa_plugin.types import Document

    period = Document("-", "-", "", {}, valid_from, valid_until, replaces or ()).period
    memory = open_memory(out, bank, model, adapter, namespace, reading=reading)
    with memory, command_progress("encoding", "files", sys.stderr, _EVERY) as show:
        report = add_files(
            memory,
            paths,
            prune=prune,
            stdin_format=stdin_format,  # type: ignore[arg-type]
            encoding=encoding,
            period=period,
            on_progress=lambda progress: show(_state(progress)),
        )
    _say(out, report)
    added = report.added
    out.result(
        {
            **asdict(added),
            "skipped": report.skipped,
            "renamed": report.renamed,
            "encodings": dict(report.encodings),
            "forgotten": report.forgotten,
        }
    )
    if report.skipped and (strict or not added.ids):
        raise typer.Exit(1)


def _state(progress: FilesProgress) -> ProgressState:
    share = progress.bytes / progress.all_bytes if progress.all_bytes else 0.0
    return ProgressState(progress.files, progress.all_files, progress.tokens, share)


def _say(out: Output, report: FilesReport) -> None:
    added = report.added
    counts = f"{len(added.added)} added, {len(added.updated)} updated, {len(added.unchanged)} unchanged"
    forgotten = f", {len(report.forgotten)} forgotten" if report.forgotten else ""
    out.say(f"{counts}{forgotten}, {len(report.skipped)} left out; {added.tokens:,} tokens in {seconds(added.seconds)}")
    _say_left_out(out, report.skipped)
    if report.forgotten:
        out.say(f"  forgotten, for their files are gone: {_some(report.forgotten)}")
    for folder in report.not_pruned:
        out.say(f"  nothing was forgotten of {folder}: it is empty, and may only be unmounted")
    for path, name in report.renamed[:_NAMED]:
        out.say(f"  {path} is stored as {name}: the shorter id is another document's")
    if len(report.renamed) > _NAMED:
        out.say(f"  ... and {len(report.renamed) - _NAMED} more with longer ids")
    if report.encodings:
        kinds = ", ".join(f"{count} as {name}" for name, count in sorted(report.encodings.items()))
        out.say(f"  encodings that are a guess: {kinds} (--encoding names one)")


def _say_left_out(out: Output, skipped: Iterable[tuple[str, str]]) -> None:
    """Every file with its reason; where many have the same one, some of them and their number."""
    for reason, paths in grouped((reason, path) for path, reason in skipped).items():
        if len(paths) <= _NAMED:
            for path in paths:
                out.say(f"  left out {path}: {reason}")
        else:
            out.say(f"  left out {len(paths)}: {reason}: {_some(paths)}")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
