"""`msa bench ...`: commands made of settings, each imported with its module when it is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import BeforeValidator, ValidationError
from typer.core import TyperCommand, TyperGroup

from msa_plugin.cli.options import Json
from msa_plugin.cli.output import Output
from msa_plugin.config import problems
from msa_plugin.errors import ConfigError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from msa_plugin.bench.command import Command

_TYPED: Any = Annotated  # of a type that is known when the command is made
# Name: where its settings are, and what it does.
COMMANDS = {
    "retrieval": (
        "bench.compare:RankingCommand",
        "Rank passages with every system and compare: nDCG, recall, reciprocal rank, average precision, time.",
    ),
    "qa": (
        "bench.compare:QaCommand",
        "Answer with every system, all by the same backbone: exact match, F1, sources, time; a judge if given.",
    ),
    "report": ("bench.report:Report", "Write report.md, report.html and the plots of a run from its results alone."),
    "paired": (
        "bench.paired:PairedRows",
        "One system against all others of a run, over the questions of all sets together: difference, interval, p.",
    ),
    "scale": (
        "bench.scale:ScaleCommand",
        "The same questions against memories grown with distractors: quality and latency at each size.",
    ),
    "latency": (
        "bench.latency:LatencyCommand",
        "Seconds by hop and stage as the memory grows, and what memory and indexing cost, against iterative RAG.",
    ),
    "needle": (
        "bench.needle:NeedleConfig",
        "Needles in a haystack: eight tasks at lengths and depths, a heat map per system.",
    ),
    "mteb": (
        "bench.mteb_search:Mteb",
        "Evaluate a memory by mteb, on its tasks, which it downloads.",
    ),
}


class BenchGroup(TyperGroup):
    """The commands, by name; a list of them imports none."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All of them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them, None for another name."""
        return _Deferred(cmd_name, help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None


class _Deferred(TyperCommand):
    """A command that becomes the real one when it is run, or its help is asked for."""

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        name = str(self.name)
        place, about = COMMANDS[name]
        module, _, settings = place.partition(":")
        model: type[Command] = getattr(import_module(f"msa_plugin.{module}"), settings)
        real = typer.Typer(add_completion=False, rich_markup_mode=None)
        real.command(name, help=f"{about}\n\n{inspect.getdoc(model)}")(callback(model))
        return typer.main.get_command(real).make_context(info_name, args, parent=parent, **extra)


def callback(model: type[Command]) -> Callable[..., None]:
    """A function for typer: what it takes are the fields of `model`, what it does is `run`."""

    def call(*, as_json: bool, **given: Any) -> None:
        try:
            command = model(**given)
        except ConfigError as error:
            if isinstance(error.__cause__, ValidationError):  # people typed options, not the names of settings
                raise ConfigError(problems(error.__cause__, shown=partial(_shown, model))) from error
            raise
        command.run(Output(as_json))

    kind = inspect.Parameter.KEYWORD_ONLY
    fields = {name: field for name, field in model.model_fields.items() if field.description}
    parameters = [
        inspect.Parameter(
            name,
            kind,
            annotation=_offered(name, field),
            default=inspect.Parameter.empty if field.is_required() else field.default,
        )
        for name, field in fields.items()
    ]
    shown = inspect.Parameter("as_json", kind, annotation=Json, default=False)
    vars(call)["__signature__"] = inspect.Signature([*parameters, shown])
    return call


def _shown(model: type[Command], name: str) -> str:
    """What a setting is called on the command line."""
    field = model.model_fields.get(name)
    extra: Any = None if field is None else field.json_schema_extra
    if not extra:
        return name
    return name.upper() if extra["argument"] else (extra["flags"] or [_flag(name)])[0]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _offered(name: str, field: FieldInfo) -> Any:
    """A field's type and option as typer reads them. Limits are checked, and told, by the settings themselves."""
    shown: Any = field.json_schema_extra
    kind = _plain(field.annotation)
    if any(isinstance(one, BeforeValidator) for one in field.metadata):  # reads text of its own kind, such as 1M
        kind = str | None if field.default is None else str
    if shown["argument"]:
        return _TYPED[kind, typer.Argument(help=field.description)]
    flags = shown["flags"] or ([_flag(name)] if field.default is False else [])
    return _TYPED[kind, typer.Option(*flags, help=field.description, envvar=shown["envvar"] or None)]


def _plain(kind: Any) -> Any:
    """What typer is to read: words and several values are text, which the settings take apart."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        [inner] = [one for one in get_args(kind) if one is not NoneType]
        return _plain(inner) | None
    return kind if kind in (bool, int, float, Path) else str


app = typer.Typer(
    cls=BenchGroup,
    help="Measure, in ratios taken in one run.",
    no_args_is_help=True,
    rich_markup_mode=None,
    invoke_without_command=False,
)


@app.callback()
def _bench() -> None:
    """Measure, in ratios taken in one run."""
