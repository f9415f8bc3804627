"""What a command of `msa bench` is: settings with their options' help texts, and what is done with them."""

from __future__ import annotations

import json
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from msa_plugin.bench.units import duration, size
from msa_plugin.config import Settings
from msa_plugin.errors import ConfigError

if TYPE_CHECKING:
    from msa_plugin.backbone.adapter import Adapter
    from msa_plugin.backbone.backbone import Backbone

Row: TypeAlias = dict[str, Any]
REPEATS = "Interleaved repetitions; medians are reported."
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


def words(given: Any) -> Any:
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
Words = Annotated[tuple[str, ...] | None, BeforeValidator(words)]
Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(sizes), Field(min_length=1)]


class Command(Settings):
    """A command of `msa bench`: its fields are options, its docstring ends the help text."""

    @abstractmethod
    def run(self, out: Voice) -> None:
        """Do it, and say what came of it. Raises what is wrong, before anything that takes long where possible."""


class _Figures(Formatter):
    """`{name:seconds}` and `{name:bytes}` in the unit that suits them, everything else as Python formats it."""

    def format_field(self, value: Any, format_spec: str) -> str:
        shown: dict[str, Callable[[float], str]] = {"seconds": duration, "bytes": size}
        return shown[format_spec](value) if format_spec in shown else format(value, format_spec)


class Case(Command):
    """A measurement of ratios in one run. `columns` are heads of its table with what stands below, for `str.format`.

    A column that a row has no figures for stays empty. With `across` each row is a column of the table: for few rows
    with many figures. `notes` are said below it; `streams` tells each row on stderr when it is measured.
    """

    columns: ClassVar[Mapping[str, str]]
    notes: ClassVar[tuple[str, ...]] = ()
    across: ClassVar[bool] = False
    streams: ClassVar[bool] = False

    def about(self) -> str:
        """What is going to happen, and what it needs."""
        return "measuring ..."

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """The figures, as they are measured."""

    def run(self, out: Voice) -> None:
        """Measure; a table for people."""
        out.note(self.about())
        rows: list[Row] = []
        for row in self.rows():
            rows.append(row)
            if self.streams:
                out.note(json.dumps(row))
        out.say(self.table(rows))
        out.result(rows)

    @classmethod
    def table(cls, rows: Sequence[Row]) -> str:
        """The rows for people."""
        grid = [list(cls.columns), *([_shown(form, row) for form in cls.columns.values()] for row in rows)]
        kept = [column for column in zip(*grid, strict=True) if any(column[1:])]
        lines = kept if cls.across else list(zip(*kept, strict=True))
        head, *body = lines or [("nothing was measured",)]
        return aligned(head, body, [_Figures().format(note, **rows[0]) for note in cls.notes if rows])


def aligned(head: Sequence[str], body: Iterable[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A table for a terminal: words stand on the left, numbers on the right."""
    lines = [tuple(head), *map(tuple, body)]
    columns = list(zip(*lines, strict=True))
    right = [all(cell[:1] in "-+.(\u20130123456789" for cell in column[1:]) for column in columns]
    widths = [max(map(len, column)) for column in columns]
    shown = [
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True))
        for line in lines
    ]
    return "\n".join([*(line.rstrip() for line in shown), *notes])


class ModelCase(Case):
    """A measurement with a backbone and an adapter."""

    model: str | None = MODEL
    adapter: Path | None = ADAPTER

    def rows(self, backbone: Backbone | None = None, adapter: Adapter | None = None) -> Iterator[Row]:
        """The figures; a `backbone` and an `adapter` that are loaded replace the named ones."""
        from msa_plugin.backbone.backbone import Backbone

        yield from self.measure(backbone or Backbone.load(self.model), adapter or self.adapter)

    @abstractmethod
    def measure(self, backbone: Backbone, adapter: Adapter | Path | None) -> Iterator[Row]:
        """The figures, as they are measured."""


class ClockedCase(ModelCase):
    """A measurement that can leave out the time of others on the same machine."""

    cpu_clock: bool = option(False, "Count this process's own seconds (one thread).")

    @model_validator(mode="after")
    def _one_thread(self) -> ClockedCase:
        import torch

        if self.cpu_clock and torch.get_num_threads() > 1:
            raise ValueError("seconds of several threads add up: count them with one, OMP_NUM_THREADS=1")
        return self

    def now(self) -> float:
        """Seconds on the chosen clock."""
        return time.process_time() if self.cpu_clock else time.perf_counter()


def medians(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over repetitions."""
    given = list(rows)
    return {name: median(row[name] for row in given) for name in given[0]}


def _shown(form: str, row: Row) -> str:
    try:
        return _Figures().format(form, **row)
    except (KeyError, TypeError):  # a figure that this row does not have, or that is None
        return ""
