"""`msa bench mteb`: a memory in mteb's own tasks, scored by mteb."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from msa_plugin.cli.options import AdapterPath, Bank, Json, Lexical, Mentions, Model, Namespace, Titles, open_memory
from msa_plugin.cli.output import Output
from msa_plugin.errors import ConfigError


def mteb(
    tasks: Annotated[str | None, typer.Option("--tasks", "-t", help="Names of mteb's tasks, by commas.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="A folder in BEIR's layout, or of such folders, as tasks.")
    ] = None,
    bank: Bank = Path("bank"),
    model: Model = None,
    adapter: AdapterPath = None,
    namespace: Namespace = "default",
    lexical: Lexical = None,
    titles: Titles = None,
    mentions: Mentions = None,
    as_json: Json = False,
) -> None:
    """Evaluate a memory by mteb, on its tasks (which it downloads) or on folders of yours.

    Example: msa bench mteb --tasks SciFact,NFCorpus --bank bench-bank
    """
    from msa_plugin.bench.datasets import find_datasets, load_dataset
    from msa_plugin.bench.mteb_search import MSASearch, evaluated, local_task, named_tasks

    out = Output(as_json)
    if (tasks is None) == (data is None):
        raise ConfigError("give either --tasks, such as SciFact, or --data, a folder in BEIR's layout")
    wanted = (
        named_tasks([name.strip() for name in tasks.split(",") if name.strip()])
        if tasks is not None
        else [local_task(load_dataset(path)) for path in find_datasets(data)]  # type: ignore[arg-type]
    )
    rows: list[dict[str, Any]] = []
    beside: dict[str, Any] = {"lexical": lexical, "titles": titles, "mentions": mentions}
    with open_memory(out, bank, model, adapter, namespace, **beside) as memory:
        search = MSASearch(memory)
        for task in wanted:
            rows += evaluated(search, task)
            for row in rows[-1:]:
                out.say(f"{row['task']}: nDCG@10 {row['ndcg_at_10']:.3f}, recall@10 {row['recall_at_10']:.3f}")
    out.result(rows)
