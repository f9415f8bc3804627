"""`msa train`: an adapter from a recipe and a folder of data."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from msa_plugin.cli.options import AdapterPath, Json, Model
from msa_plugin.cli.output import Output, size
from msa_plugin.errors import ConfigError

Dtype = Literal["float32", "bfloat16"]

if TYPE_CHECKING:
    from msa_plugin.types import OnProgress


def train(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A recipe's name, or a .toml file.")],
    data: Annotated[
        Path, typer.Option("--data", "-d", help="A data set, or a folder of them: corpus, queries, qrels as in BEIR.")
    ],
    to: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for checkpoints, curves and the adapter.")
    ] = None,
    model: Model = None,
    adapter: AdapterPath = None,
    steps: Annotated[int | None, typer.Option(help="Steps of every phase, instead of the recipe's.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's own: other groups.", min=0)] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the frozen weights; bfloat16 is faster where the processor is fast at it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, from a few micro-batches; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train an adapter. The same command goes on where it was stopped or killed.

    Example: msa train --recipe cpu-small --data data/train --out run
    """
    from msa_plugin.training.recipes import load_recipe

    out, chosen = Output(as_json), load_recipe(recipe, seed)
    if to is None and not dry_run:
        raise ConfigError("--out names the folder to train in; only --dry-run needs none")
    from msa_plugin.backbone.adapter import Adapter
    from msa_plugin.backbone.backbone import Backbone
    from msa_plugin.training.devices import Devices
    from msa_plugin.training.recipe_run import Data, RecipeRun

    devices = Devices()  # before the model: it decides which GPU is this process's
    loaded = Data.load(data, chosen.sets, chosen.seed)
    begun = None if adapter is None else Adapter.load(adapter)
    out.note(f"loading {model or 'the default backbone'} ...")
    # Autocast casts what it multiplies; half-precision weights would also round what one layer hands to the next.
    mixed = any(phase.training.precision != "float32" for phase in chosen.plan(steps))
    backbone = Backbone.load(model, dtype=dtype or ("auto" if mixed and devices.device.type == "cuda" else "float32"))
    run = RecipeRun(chosen, backbone, loaded, adapter=begun, steps=steps, devices=devices)
    if dry_run or to is None:
        found = run.dry_run()
        _say_estimate(out, found)
        out.result(found)
        return
    with ExitStack() as stack:
        done = run.train(to, lambda phase: _bar(stack, phase))
    if not devices.main:
        return
    measured = ", ".join(f"{name} {value:.3f}" for name, value in done.measured.items())
    if done.finished:
        out.say(f"trained in {done.seconds / 3600:.2f} h on {done.tokens:,} tokens; {to / 'adapter'}  {measured}")
    else:
        out.say(f"stopped after step {done.step}, with a checkpoint; the same command goes on from there")
    out.result(
        {
            "finished": done.finished,
            "step": done.step,
            "seconds": done.seconds,
            "tokens": done.tokens,
            "measured": dict(done.measured),
            "adapter": str(to / "adapter") if done.finished else None,
        }
    )


def _bar(stack: ExitStack, phase: str) -> OnProgress | None:
    """A phase's progress bar; the one before it ends."""
    from msa_plugin.progress import terminal_progress

    stack.close()
    return stack.enter_context(terminal_progress(phase, None, sys.stderr))


def _say_estimate(out: Output, found: Mapping[str, Any]) -> None:
    out.say(f"recipe {found['recipe']}, objective {found['objective']}")
    for part in found["data"]:
        out.say(
            f"  {part['name']}: {part['passages']:,} passages; {part['retrieval']:,} retrieval steps, "
            f"{part['answers']:,} answers"
        )
        for note in part["notes"]:
            out.say(f"    {note}")
    for phase in found["phases"]:
        out.say(
            f"  {phase['name']}: {phase['steps']:,} steps, {phase['micro_batches']:,} micro-batches of about "
            f"{phase['tokens_per_micro_batch']:,} tokens, {phase['tokens']:,} in all; "
            f"{phase['trained_parameters']:,} parameters train"
        )
        out.say(
            f"    {phase['tokens_per_second']:,.0f} tokens/s now, so about {phase['hours']:.2f} h; "
            f"memory {size(phase['memory_bytes'])}, a checkpoint {size(phase['checkpoint_bytes'])}"
        )
    out.say(f"  about {found['hours']:.2f} h in all, {size(found['memory_bytes'])} of memory")
