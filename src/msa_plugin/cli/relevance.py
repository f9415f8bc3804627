"""`msa relevance`: what a hit's signals mean, fitted to an adapter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from msa_plugin.cli.options import AdapterPath, Json, Model
from msa_plugin.cli.output import Output
from msa_plugin.errors import ConfigError


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
