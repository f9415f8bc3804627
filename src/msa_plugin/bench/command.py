"""What a command of `msa bench` is: settings with their options' help texts, and what is done with them."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Protocol

from pydantic import BeforeValidator, Field

from msa_plugin.config import Settings
from msa_plugin.errors import ConfigError

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?(?:E\d+)?)\s*([KMG]?)\s*")


class Voice(Protocol):
    """How a command speaks: `msa_plugin.cli.output.Output`."""

    def note(self, text: str) -> None:
        """What is going on."""

    def say(self, text: str = "") -> None:
        """A line for people."""

    def result(self, data: Any) -> None:
        """The whole result, for programs."""


def option(default: Any, about: str, *flags: str, argument: bool = False, envvar: str = "", **limits: Any) -> Any:
    """A field that the command line offers, described by `about`; `flags` replace `--its-name`.

    A default that is text is read as the command line's would be.
    """
    shown: dict[str, Any] = {"flags": list(flags), "argument": argument, "envvar": envvar}
    return Field(default, description=about, validate_default=True, json_schema_extra=shown, **limits)


def parts(given: Any) -> Any:
    """Text as the parts between its commas, without empty ones; anything else as it is."""
    return tuple(part.strip() for part in given.split(",") if part.strip()) if isinstance(given, str) else given


def sizes(given: Any) -> Any:
    """Text as ascending whole numbers: 1000, 1e5, or with K, M and G for powers of 1,024; anything else as it is.

    Raises ConfigError.
    """
    if not isinstance(given, str):
        return given
    found = []
    for part in given.split(","):
        match = _SIZE.fullmatch(part.upper())
        count = int(float(match[1]) * _UNITS[match[2]]) if match else 0
        if count < 1:
            raise ConfigError(f"{part!r} is not a size; sizes are numbers with commas between: 1000, 1e5, 16K, 1M")
        found.append(count)
    return tuple(sorted(set(found)))


def one_size(given: Any) -> Any:
    """Text as one such number. Raises ConfigError for several."""
    found = sizes(given)
    if isinstance(given, str) and len(found) > 1:
        raise ConfigError(f"one size was expected, not {given!r}; run the command once for each, into other folders")
    return found[0] if isinstance(given, str) else given


MODEL = option(None, "Folder, .gguf file or hub id of the backbone.", "--model", "-m", envvar="MSA_MODEL")
ADAPTER = option(None, "Folder of an adapter.", "--adapter", "-a", envvar="MSA_ADAPTER")
Words = Annotated[tuple[str, ...] | None, BeforeValidator(parts)]
Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(sizes), Field(min_length=1)]


class Command(Settings):
    """A command of `msa bench`: its fields are options, its docstring ends the help text."""

    @abstractmethod
    def run(self, out: Voice) -> None:
        """Do it, and say what came of it. Raises what is wrong, before anything that takes long where possible."""


def aligned(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table for a terminal: words stand on the left, numbers on the right."""
    lines = [tuple(head), *map(tuple, body)]
    columns = list(zip(*lines, strict=True))
    right = [all(cell[:1] in "-+.(\u20130123456789" for cell in column[1:]) for column in columns]
    widths = [max(map(len, column)) for column in columns]
    shown = [
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True))
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in shown)
