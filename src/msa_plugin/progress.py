"""A progress bar on a terminal, silence elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from msa_plugin.types import OnProgress, Progress


@contextmanager
def terminal_progress(label: str, given: OnProgress | None, stream: TextIO) -> Iterator[OnProgress | None]:
    """The caller's own callback if there is one, else a bar with time left if `stream` is a terminal, else None."""
    if given is not None or not stream.isatty():
        yield given
        return
    columns = [TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
    with Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(label, total=None, rate="")

        def show(progress: Progress) -> None:
            seconds = bar.tasks[task].elapsed or 0.0
            rate = f"{progress.tokens / seconds:,.0f} tokens/s" if seconds > 0.5 else ""
            bar.update(task, completed=progress.documents, total=progress.total, rate=rate)

        yield show
