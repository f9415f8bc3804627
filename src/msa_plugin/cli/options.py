"""Options that several commands share, and how they open a memory or, where no backbone is needed, a bank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msa_plugin.cli.output import Output
from msa_plugin.errors import InvalidQueryError

if TYPE_CHECKING:
    from msa_plugin.bank.bank import MemoryBank
    from msa_plugin.memory import LatentMemory

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
    typer.Option(help="Weight of BM25 beside routing scores; 0: keys alone. [default: the adapter's]"),
]
Titles = Annotated[
    float | None,
    typer.Option(
        help="How much titles named in the question or in what is found count; 0: not. [default: the adapter's]"
    ),
]
Reading = Annotated[str, typer.Option(help="How answers read memory: auto, text, latent or kv.")]


def open_memory(
    out: Output,
    bank: Path,
    model: str | None,
    adapter: Path | None,
    namespace: str,
    *,
    must_exist: bool = False,
    **settings: Any,
) -> LatentMemory:
    """Open a memory, saying so; `must_exist` refuses to create an empty one for a command that only reads."""
    from msa_plugin.bank.catalog import read_fingerprint
    from msa_plugin.memory import LatentMemory

    if must_exist:
        read_fingerprint(bank)  # a mistyped path is told before a backbone is loaded
    out.note(f"opening {bank} with {model or 'the default backbone'} ...")
    return LatentMemory.open(bank, model=model, adapter=adapter, namespace=namespace, read_only=must_exist, **settings)


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
