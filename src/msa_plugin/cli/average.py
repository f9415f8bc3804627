"""`msa average`: one adapter from several that were trained from the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msa_plugin.cli.options import Json
from msa_plugin.cli.output import Output
from msa_plugin.errors import ConfigError


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
