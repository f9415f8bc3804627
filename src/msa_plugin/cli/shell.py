"""`msa shell`: load once, ask many times."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msa_plugin.cli.options import (
    AdapterPath,
    At,
    Bank,
    History,
    Json,
    Lexical,
    Mentions,
    Model,
    Namespace,
    Reading,
    Recency,
    Snapshot,
    Titles,
    Where,
    check_not_empty,
    nothing_found,
    open_memory,
    parse_filter,
)
from msa_plugin.cli.output import Output
from msa_plugin.dates import asof
from msa_plugin.errors import MSAError

if TYPE_CHECKING:
    from msa_plugin.memory import LatentMemory

_PROMPT = "msa> "
_HISTORY = 1000
_HELP = """  a question            an answer from the memory, with its sources
  /find QUESTION        the documents that fit, without an answer
  /filter JSON          ask only documents whose metadata fit; /filter alone: all again
  /help                 this
  /quit                 end (also Ctrl-D); Ctrl-C stops an answer"""


def shell(
    bank: Bank = Path("bank"),
    model: Model = None,
    adapter: AdapterPath = None,
    namespace: Namespace = "default",
    where: Where = None,
    snapshot: Snapshot = None,
    at: At = None,
    history: History = False,
    reading: Reading = "auto",
    lexical: Lexical = None,
    titles: Titles = None,
    mentions: Mentions = None,
    recency: Recency = None,
    as_json: Json = False,
) -> None:
    """Load the model once, then ask as often as you like.

    Reads questions line by line, from a pipe too. With --json, one JSON list of all results at the end.

    Example: msa shell --bank bank
    """
    out = Output(as_json)
    settings = {"reading": reading, "lexical": lexical, "titles": titles, "mentions": mentions, "recency": recency}
    wanted = parse_filter(where)
    asof(at, history)
    check_not_empty(bank, namespace, snapshot)
    with open_memory(out, bank, model, adapter, namespace, must_exist=True, snapshot=snapshot, **settings) as memory:
        out.note("ask, or /help; /quit ends")
        session = _ShellSession(out, memory, wanted, {"at": at, "history": history})
        with _lines(interactive=sys.stdin.isatty() and not as_json) as lines:
            for line in lines:
                if not session.take(line.strip()):
                    break
    out.result(session.results)


class _ShellSession:
    """One shell's state: what it asks, and what it has answered."""

    def __init__(self, out: Output, memory: LatentMemory, where: dict[str, Any] | None, time: dict[str, Any]) -> None:
        self.results: list[Any] = []
        self._out, self._memory, self._where, self._time = out, memory, where, time
        self._commands: dict[str, Callable[[str], None]] = {
            "/find": self._find,
            "/filter": self._filter,
            "/help": lambda _: self._out.say(_HELP),
        }

    def take(self, line: str) -> bool:
        """Do what a line says; False when it says to end."""
        word, _, rest = line.partition(" ")
        if word in ("/quit", "/exit"):
            return False
        try:
            if word.startswith("/"):
                command = self._commands.get(word)
                if command is None:
                    self._out.say(f"  there is no {word}; /help lists what there is")
                else:
                    command(rest.strip())
            elif line:
                self._ask(line)
        except MSAError as error:
            self._out.fail(str(error))
        except KeyboardInterrupt:
            self._out.say("\n  stopped")
        return True

    def _ask(self, question: str) -> None:
        with closing(self._memory.stream(question, filter=self._where, **self._time)) as stream:
            for piece in stream:
                self._out.say(piece, end="")
        self._out.say()
        if (answer := stream.answer) is not None:
            for source in answer.sources:
                self._out.say(f"  [{source.id}] {source.title or source.text[:60]!r}")
            self.results.append(answer.to_dict())

    def _find(self, question: str) -> None:
        hits = self._memory.retrieve(question, filter=self._where, **self._time)
        for hit in hits:
            self._out.say(f"  {hit.score:6.3f}  [{hit.id}] {hit.title or hit.text[:70]!r}")
        if not hits:
            self._out.say(f"  {nothing_found(self._memory, self._where)}")
        self.results.append([asdict(hit) for hit in hits])

    def _filter(self, text: str) -> None:
        self._where = parse_filter(text or None)
        self._out.say(f"  only documents that fit {json.dumps(self._where)}" if self._where else "  all documents")


@contextmanager
def _lines(*, interactive: bool) -> Iterator[Iterator[str]]:
    """Lines from standard input: with a prompt, editing and a history kept between sessions, or just as they come."""
    if not interactive:
        yield iter(sys.stdin)
        return
    with _history():
        yield iter(_typed, None)


def _typed() -> str | None:
    """A line that was typed; None at the end of input, "" for one that was given up with Ctrl-C."""
    try:
        return input(_PROMPT)
    except (EOFError, KeyboardInterrupt) as ended:
        sys.stdout.write("\n")
        return None if isinstance(ended, EOFError) else ""


@contextmanager
def _history() -> Iterator[None]:
    """Keep what was typed in the cache folder, where that can be written and the system has readline."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    from msa_plugin.backbone.cache import cache_dir

    file = cache_dir() / "shell-history"
    with suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        readline.set_history_length(_HISTORY)
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
            file.chmod(0o600)
