"""Options that several commands share, and how they open a memory or, where no backbone is needed, a bank."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msa_plugin.cli.output import Output
from msa_plugin.errors import EmptyMemoryError, InvalidQueryError

if TYPE_CHECKING:
    from msa_plugin.bank.bank import MemoryBank
    from msa_plugin.bank.catalog import Catalog
    from msa_plugin.memory import LatentMemory


def word_of(*words: str) -> Callable[[str], str]:
    """Check that an option is one of `words`, before anything is loaded."""

    def check(given: str) -> str:
        if given in words:
            return given
        near = get_close_matches(given, words, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise typer.BadParameter(f"{given!r} is not one of {', '.join(words)}{hint}")

    return check


def _question(given: str) -> str:
    if not given.strip():
        raise typer.BadParameter("a question must have something in it")
    return given


Bank = Annotated[Path, typer.Option("--bank", "-b", help="Folder of the memory bank.", envvar="MSA_BANK")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Folder, .gguf file or hub id of the backbone.", envvar="MSA_MODEL")
]
AdapterPath = Annotated[
    Path | None, typer.Option("--adapter", "-a", help="Folder of an adapter.", envvar="MSA_ADAPTER")
]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="The only part of the bank this call can see.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; notes stay on stderr.")]
Where = Annotated[str | None, typer.Option("--filter", "-f", help="Metadata filter as JSON, e.g. '{\"year\": 1999}'.")]
Lexical = Annotated[
    float | None,
    typer.Option(help="Weight of a question's words beside routing scores; 0: keys alone. [default: the adapter's]"),
]
Titles = Annotated[
    float | None,
    typer.Option(
        help="How much titles named in the question or in what is found count; 0: not. [default: the adapter's]"
    ),
]
Mentions = Annotated[
    float | None,
    typer.Option(help="How much rare names shared with what is found count; 0: not. [default: the adapter's]"),
]
Reading = Annotated[
    str,
    typer.Option(
        help="How answers read memory: auto, text, latent or kv.", callback=word_of("auto", "text", "latent", "kv")
    ),
]
At = Annotated[
    str | None,
    typer.Option("--at", help="Find what was valid then: 2026-03-01, or 2026-03-01T10:00 (UTC). [default: now]"),
]
Recency = Annotated[
    float | None,
    typer.Option(help="Rank newer documents higher: the days after which that counts half. [default: not at all]"),
]
History = Annotated[bool, typer.Option("--history", help="Find what was superseded and what has expired, too.")]
Question = Annotated[str, typer.Argument(help="The question.", callback=_question)]
Snapshot = Annotated[
    str | None, typer.Option("--snapshot", help="A named state of the bank to ask, instead of the newest.")
]


def open_memory(
    out: Output,
    bank: Path,
    model: str | None,
    adapter: Path | None,
    namespace: str,
    *,
    must_exist: bool = False,
    snapshot: str | None = None,
    **settings: Any,
) -> LatentMemory:
    """Open a memory, saying so; `must_exist` refuses to create an empty one for a command that only reads."""
    from msa_plugin.memory import LatentMemory

    out.note(f"opening {bank} with {model or 'the default backbone'} ...")
    return LatentMemory.open(
        bank, model=model, adapter=adapter, namespace=namespace, read_only=must_exist, snapshot=snapshot, **settings
    )


def empty(bank: Path, namespace: str, snapshot: str | None = None) -> str:
    """Why there is nothing to find, told without a backbone; "" where there is something.

    Raises BankNotFoundError for a mistyped path, SnapshotError and the other Bank errors.
    """
    with open_catalog(bank) as catalog:
        at = catalog.snapshot(snapshot).at if snapshot is not None else catalog.now()
        return "" if catalog.documents.totals(at, namespace).documents else _empty(namespace, snapshot)


def check_not_empty(bank: Path, namespace: str, snapshot: str | None) -> None:
    """Raises EmptyMemoryError where there is nothing to answer from, and as `empty`."""
    if reason := empty(bank, namespace, snapshot):
        raise EmptyMemoryError(f"nothing to answer from: {reason}")


def _empty(namespace: str, snapshot: str | None) -> str:
    where = f"snapshot {snapshot!r}" if snapshot is not None else "the memory"
    return f"{where} holds no document in namespace {namespace!r}; `msa add FILES` stores some"


def nothing_found(memory: LatentMemory, where: dict[str, Any] | None, least: float | None = None) -> str:
    """Why a question found no document."""
    if least and memory.stats().documents:
        return f"nothing found: no document that may be read is relevant at {least}"
    if where and memory.stats().documents:
        return f"nothing found: no document passes the filter {json.dumps(where, ensure_ascii=False)}"
    return f"nothing found: {_empty(memory.namespace, None)}"


@contextmanager
def open_catalog(path: Path, *, checked: bool = False) -> Iterator[Catalog]:
    """What a bank knows of its documents and files, at one moment; takes no torch. `checked`: see `Catalog`."""
    from msa_plugin.bank.catalog import Catalog
    from msa_plugin.bank.disk import disk_errors

    with disk_errors(path, reading=True):
        catalog = Catalog(path, writable=False, checked=checked)
        try:
            catalog.hold_snapshot()
            yield catalog
        finally:
            catalog.close()


def open_bank(path: Path, *, read_only: bool) -> MemoryBank:
    """Open a bank that exists, whatever it was built with."""
    from msa_plugin.bank.bank import MemoryBank
    from msa_plugin.bank.catalog import read_fingerprint

    return MemoryBank.open(path, read_fingerprint(path), create=False, read_only=read_only)


def parse_filter(text: str | None) -> dict[str, Any] | None:
    """A --filter argument. Raises InvalidQueryError when it is not a JSON object."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidQueryError(f"--filter is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidQueryError("--filter must be a JSON object")
    return value
