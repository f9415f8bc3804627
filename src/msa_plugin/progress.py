"""How far a long call is: a bar on a terminal; elsewhere silence, or a line every few seconds for a command."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from msa_plugin.types import OnProgress, Progress

_LINE_SECONDS = 5.0


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


class ProgressState(NamedTuple):
    """How far a command is: `done` of `total` things, tokens so far, and the share of all work that is done.

    `share` is 0 where it is not known.
    """

    done: int
    total: int
    tokens: int
    share: float

    def words(self, unit: str, seconds: float) -> str:
        """The state in words, after so many seconds: things and tokens of how many, speed, and time left."""
        parts = [f"{self.done:,} of {self.total:,} {unit}", f"{self.tokens:,} tokens"]
        if self.share > 0:
            parts[1] = f"{self.tokens:,} of about {rounded(self.tokens / self.share):,} tokens"
        if self.tokens and seconds > 0.5:
            parts.append(f"{self.tokens / seconds:,.0f} tokens/s")
        if 0 < self.share < 1:
            parts.append(f"about {duration(seconds / self.share - seconds)} left")
        return ", ".join(parts)


@contextmanager
def command_progress(
    label: str, unit: str, stream: TextIO, every: float = _LINE_SECONDS
) -> Iterator[Callable[[ProgressState], None]]:
    """A callback that takes `ProgressState`s: a bar if `stream` is a terminal, else a line on it every few seconds."""
    begun = time.monotonic()
    if not stream.isatty():
        with _Lines(label, unit, stream, every) as lines:
            yield lines.show
        return
    columns = [TextColumn(label), BarColumn(bar_width=20), TextColumn("{task.fields[words]}")]
    with Bar(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(label, total=None, words="")

        def show(state: ProgressState) -> None:
            total = 1.0 if state.share else None
            words = state.words(unit, time.monotonic() - begun)
            bar.update(task, completed=state.share, total=total, words=words)

        yield show


class _Lines:
    """Writes the newest state every few seconds, also while nothing new comes."""

    def __init__(self, label: str, unit: str, stream: TextIO, every: float) -> None:
        self._label, self._unit, self._stream, self._every = label, unit, stream, every
        self._begun, self._state = time.monotonic(), ProgressState(0, 0, 0, 0.0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def show(self, state: ProgressState) -> None:
        self._state = state

    def _write(self) -> None:
        while not self._ended.wait(self._every):
            seconds, state = time.monotonic() - self._begun, self._state
            words = state.words(self._unit, seconds) if state.total else f"{duration(seconds)} so far"
            self._stream.write(f"{self._label}: {words}\n")
            self._stream.flush()

    def __enter__(self) -> _Lines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def duration(seconds: float) -> str:
    """A time to wait, for people."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def rounded(number: float) -> int:
    """A number with two digits that count."""
    whole = int(number)
    step: int = 10 ** max(0, len(str(whole)) - 2)
    return round(whole / step) * step
