"""`msa bench decode`: what int8 weights save while an answer is written."""

from __future__ import annotations

from typing import Annotated

import typer

from msa_plugin.cli.options import AdapterPath, Json, Model
from msa_plugin.cli.output import Output, seconds


def decode(
    model: Model = None,
    adapter: AdapterPath = None,
    prompt: Annotated[int, typer.Option(help="About how many tokens of documents are read.", min=1)] = 400,
    tokens: Annotated[int, typer.Option(help="Tokens of an answer.", min=2)] = 10,
    rows: Annotated[int, typer.Option(help="Questions answered together.", min=1)] = 1,
    repeats: Annotated[int, typer.Option(help="Answers in each way, by turns; medians are reported.", min=1)] = 5,
    as_json: Json = False,
) -> None:
    """Answers that are written with int8 weights over those with the model's own, in this process's own seconds.

    Example: OMP_NUM_THREADS=1 msa bench decode
    """
    from msa_plugin.bench import decode as bench

    out = Output(as_json)
    out.note("answering in both ways, by turns ...")
    found = bench.run(model, adapter, prompt=prompt, tokens=tokens, rows=rows, repeats=repeats)
    out.say("weights    prefill     decode     answer   decode over full   answer over full")
    for row in found:
        times = "".join(f" {seconds(row[name]):>10}" for name in ("prefill_s", "decode_s", "answer_s"))
        out.say(f"{row['weights']:7}{times} {row['decode_over_full']:18.2f} {row['over_full']:18.2f}")
    out.result(found)
