"""How far a run is: a bar with the time left on a terminal, silence elsewhere."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Watch:
    """Counts answered questions, and shows what is going on; a context manager."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """On `stream` if it is a terminal; None is silent."""
        silent = stream is None or not stream.isatty()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, *times, console=Console(file=stream), transient=True, disable=silent)
        self._all = self._bar.add_task("questions", total=None)
        self._one = self._bar.add_task("", total=None, visible=False)

    def expect(self, total: int) -> None:
        """From now on `total` questions are to come, over all systems and data sets."""
        self._bar.reset(self._all, total=total)

    def advance(self, done: int) -> None:
        """So many more questions are done."""
        self._bar.advance(self._all, done)

    def step(self, what: str, done: int, total: int) -> None:
        """Part of the work in between, such as encoding a corpus; done when `done` is `total`."""
        self._bar.update(self._one, description=what, completed=done, total=total, visible=done < total)

    def say(self, what: str) -> None:
        """What is being worked on."""
        self._bar.update(self._all, description=what)

    def __enter__(self) -> Watch:
        """Itself, shown."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        self._bar.stop()
