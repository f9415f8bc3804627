"""How commands speak: a result for people or, with --json, one JSON document on stdout; notes on stderr."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.text import Text

from msa_plugin.display.page import printable
from msa_plugin.display.page import seconds as seconds
from msa_plugin.errors import ConfigError, IngestError, InvalidQueryError, MissingExtraError, MSAError

WRONG_USE = (ConfigError, InvalidQueryError, IngestError, MissingExtraError)


class Output:
    """One command's voice."""

    def __init__(self, as_json: bool) -> None:
        """With `as_json` nothing but `result`'s data reaches stdout."""
        self.as_json = as_json
        self.console = _console()
        self.errors = _console(stderr=True)

    def note(self, text: str) -> None:
        """Say on stderr what is going on."""
        self.errors.print(f"[dim]{escape(printable(text))}[/dim]")

    def say(self, text: str = "", *, end: str = "\n", markup: bool = False) -> None:
        """A line for people; silent with --json. Text is printed as it is unless `markup` says that it is ours."""
        if not self.as_json:
            self.console.print(printable(text), end=end, markup=markup)

    def fail(self, text: str) -> None:
        """Say on stderr what went wrong."""
        self.errors.print(f"[bold red]error:[/bold red] {escape(printable(text))}")

    def say_marked(self, text: str, spans: Sequence[tuple[int, int]]) -> None:
        """A line for people with characters [start, end) of each span in bold, where this is a terminal."""
        if not self.as_json:
            line = Text(printable(text))  # as long as the text: a character for each
            for start, end in spans:
                line.stylize("bold", start, end)
            self.console.print(line)

    def result(self, data: Any) -> None:
        """The command's result as one JSON document; silent without --json."""
        if self.as_json:
            plain = _plain(data)
            text = json.dumps(plain, ensure_ascii=False, indent=1)
            try:
                text.encode(sys.stdout.encoding or "utf-8")
            except UnicodeEncodeError:
                text = json.dumps(plain, indent=1)  # escapes say the same in any encoding
            sys.stdout.write(text + "\n")


def _console(**options: Any) -> Console:
    """A console that prints texts as they are: without colours for numbers, line breaks, or :emoji: names replaced."""
    return Console(highlight=False, soft_wrap=True, emoji=False, **options)


def _plain(data: Any) -> Any:
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return dataclasses.asdict(data)
    if isinstance(data, (list, tuple)):
        return [_plain(item) for item in data]
    return data


def report_error(error: MSAError) -> int:
    """Print one of our errors to stderr; returns the exit code: 2 for wrong use, else 1."""
    Output(as_json=False).fail(str(error))
    return 2 if isinstance(error, WRONG_USE) else 1


def set_up_logging(verbose: bool) -> None:
    """Warnings (or, verbosely, everything) of this package to stderr; transformers' own bars stay off."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False, markup=False)
    logger = logging.getLogger("msa_plugin")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


def size(count: int) -> str:
    """A number of bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError
