"""`msa calibrate`, `msa average` and `msa relevance`: adapters made, averaged, and fitted to say what is relevant."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from msa_plugin.cli.options import AdapterPath, Json, Model
from msa_plugin.cli.output import Output
from msa_plugin.errors import ConfigError


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
    """Build a router for a model in minutes, without training.

    From forward passes over plain text.

    Example: msa calibrate docs/ --model ./my-model --out adapter
    """
    from msa_plugin.backbone.backbone import Backbone
    from msa_plugin.data import calibration_questions
    from msa_plugin.encoding.calibration import Calibration, CalibrationConfig
    from msa_plugin.engine.adapters import calibrated_path
    from msa_plugin.ingest import read_paths
    from msa_plugin.progress import terminal_progress
    from msa_plugin.prompts import document_text

    out = Output(as_json)
    config = CalibrationConfig(layers=_layers(layers), dims=dims, pooling=pooling)
    out.note(f"loading {model or 'the default backbone'} ...")
    backbone = Backbone.load(model)
    asked = calibration_questions() if questions is None else _lines(questions)
    passages = (document_text(d.title, d.text) for d in read_paths(paths))
    with terminal_progress("calibrating", None, sys.stderr) as progress:
        made = Calibration(backbone, config).run(passages, asked, on_progress=progress)
    folder = to or calibrated_path(backbone)
    made.save(folder)
    routing, seen = made.config.routing, made.config.provenance
    out.say(f"calibrated {backbone.name} on {seen['passages']} passages and {seen['questions']} questions:")
    out.say(
        f"  layers {', '.join(map(str, routing.layers))}; {routing.key_groups['shared']} numbers per {pooling} tokens"
    )
    out.say(f"  saved to {folder}" + ("" if to else ", where open() finds it by itself"))
    out.result({"adapter": str(folder), "config": made.config.model_dump(mode="json")})


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--layers must be numbers separated by commas, not {text!r}") from error


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read questions from {path}: {error}") from error


def average(
    adapters: Annotated[list[Path], typer.Argument(help="Folders of adapters that were trained from the same one.")],
    to: Annotated[Path, typer.Option("--out", "-o", help="Folder of the adapter that is their mean; a new one.")],
    rank: Annotated[int | None, typer.Option(help="Rank of its LoRA (default: the highest of theirs).", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Average adapters that were trained from the same one.

    Example: msa average run-0/adapter run-1/adapter --out adapter
    """
    from msa_plugin.backbone.adapter import Adapter
    from msa_plugin.training.average import average as mean

    out = Output(as_json)
    if to.exists():
        raise ConfigError(f"{to} exists already; name a folder that does not")
    found = mean([Adapter.load(path) for path in adapters], rank)
    found.adapter.save(to)
    out.say(f"averaged {len(adapters)} adapters; the rank of the LoRA leaves out {found.lost:.2%} of it; {to}")
    out.result({"adapter": str(to), "averaged": len(adapters), "lost": found.lost})


def relevance(
    data: Annotated[
        Path, typer.Option("--data", "-d", help="A data set, or a folder of them: corpus, queries, qrels as in BEIR.")
    ],
    to: Annotated[Path, typer.Option("--out", "-o", help="Folder for the adapter with relevance.")],
    model: Model = None,
    adapter: AdapterPath = None,
    sets: Annotated[str | None, typer.Option(help="Only these data sets, separated by commas.")] = None,
    questions: Annotated[int, typer.Option(help="Questions of each data set, at most.", min=1)] = 200,
    passages: Annotated[int, typer.Option(help="Passages of each data set, at most; gold ones always.", min=1)] = 2000,
    seed: Annotated[int, typer.Option(help="Which questions and passages.", min=0)] = 0,
    banks: Annotated[
        Path | None, typer.Option(help="Where the encoded passages are kept for another time [a temporary folder].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit how likely a hit answers a question.

    From questions with their answer in the memory and with it taken away. The adapter is the same but for that: banks
    made with it stay valid. Killed, the command encodes no passage again where --banks keeps them.

    Example: msa relevance --data data/train --sets squad,nqswap --out adapter
    """
    import tempfile

    from msa_plugin.backbone.backbone import Backbone
    from msa_plugin.engine.adapters import find_adapter
    from msa_plugin.training.relevance import RelevancePlan, fit_adapter

    out = Output(as_json)
    plan = RelevancePlan(questions=questions, passages=passages, seed=seed)
    wanted = None if sets is None else [name.strip() for name in sets.split(",") if name.strip()]
    out.note(f"loading {model or 'the default backbone'} ...")
    backbone = Backbone.load(model)
    given = find_adapter(backbone, adapter)
    if to.exists() and not (to / "adapter.json").is_file() and any(to.iterdir()):
        raise ConfigError(f"{to} holds something else than an adapter; name another folder")
    with ExitStack() as stack:
        folder = banks or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fitted, measured = fit_adapter(backbone, given, data, wanted, plan, folder, _steps(out))
    fitted.save(to)
    for name, found in measured.items():
        out.say(f"{name}: {found['asked']:.0f} questions asked, AUC {found['auc']:.3f} by words and keys")
    config = fitted.config.relevance
    assert config is not None
    out.say(f"below {config.least:.3f} the memory is taken not to say it; saved to {to}")
    out.result({"adapter": str(to), "relevance": config.model_dump(mode="json"), "measured": measured})


def _steps(out: Output) -> Callable[[str, int, int], None]:
    def say(what: str, done: int, total: int) -> None:
        if done % 50 == 0:
            out.note(f"{what}: {done} of {total}")

    return say
