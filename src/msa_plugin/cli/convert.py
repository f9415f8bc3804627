"""`msa convert`: a plain backbone with our adapter to the reference's checkpoint format, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msa_plugin.cli.options import Json
from msa_plugin.cli.output import Output

app = typer.Typer(help="Between our adapters and checkpoints in the reference's format.", no_args_is_help=True)
To = Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must not exist or be empty.")]


@app.command()
def to_reference(
    model: Annotated[Path, typer.Argument(help="Folder of a Qwen3 model.")],
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter that was made for it.")],
    out: To,
    as_json: Json = False,
) -> None:
    """Write one checkpoint that holds both, as the reference reads it.

    Example: msa convert to-reference ./qwen3 ./adapter --out ./msa-checkpoint
    """
    from msa_plugin.backbone.adapter import Adapter
    from msa_plugin.backbone.convert import to_reference as convert

    output = Output(as_json)
    convert(model, Adapter.load(adapter), out)
    output.say(f"wrote {out}")
    output.result({"checkpoint": str(out)})


@app.command()
def from_reference(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint in the reference's format.")],
    out: To,
    as_json: Json = False,
) -> None:
    """Take one checkpoint apart, into a plain Qwen3 model and an adapter.

    Example: msa convert from-reference ./msa-checkpoint --out ./parts
    """
    from msa_plugin.backbone.convert import from_reference as convert

    output = Output(as_json)
    convert(checkpoint, out)
    output.say(f"wrote {out / 'backbone'} and {out / 'adapter'}")
    output.result({"model": str(out / "backbone"), "adapter": str(out / "adapter")})
