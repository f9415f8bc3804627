"""What a hostile input must not do: run code, leave its folder, take much memory or time, or raise a foreign error."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msa_plugin.backbone.loading import cache_dir
from msa_plugin.errors import MSAError

SECONDS = 60
_RUNS_CODE = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pty.spawn"),
    *("pickle.find_class", "marshal.loads", "socket.connect", "socket.getaddrinfo", "builtins.input"),
)
_SYSTEM = ("/proc", "/sys", "/dev", "/usr/share")
_WRITES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "shutil.rmtree")


class HostileInputError(BaseException):
    """An input got its way; no handler of the product may swallow it."""


class _Watch:
    """The audit hook of this process, which cannot be taken out again, only switched off."""

    def __init__(self) -> None:
        self.inside: str | None = None
        self.found: list[str] = []
        self.readable: tuple[str, ...] = ()
        self._installed = False

    def install(self) -> None:
        if not self._installed:
            roots = {sys.prefix, sys.base_prefix, str(Path(os.__file__).parent), *filter(None, sys.path)}
            self.readable = (*map(os.path.realpath, roots), str(cache_dir()), *_SYSTEM)
            sys.addaudithook(self._hook)
            self._installed = True

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event in _RUNS_CODE and not self._importing():
            self.found.append(f"{event}{arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            writes = bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            self._check(event, arguments[0], () if writes else self.readable)
        elif event in _WRITES:
            self._check(event, self._under(*arguments), ())

    @staticmethod
    def _importing() -> bool:
        """Whether a module is being imported: its compiled code is read with marshal."""
        frame = sys._getframe(2)
        return any(f.f_code.co_filename.startswith("<frozen importlib") for f in _frames(frame))

    @staticmethod
    def _under(path: Any, *rest: Any) -> Any:
        """A path given relative to an open folder, as `shutil.rmtree` does, as a whole."""
        folder = rest[-1] if rest and isinstance(rest[-1], int) else -1
        if folder < 0 or not isinstance(path, str | bytes):
            return path
        return str(Path(f"/proc/self/fd/{folder}").readlink() / os.fsdecode(path))

    def _check(self, event: str, path: Any, allowed: tuple[str, ...]) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        inside, self.inside = self.inside, None  # what follows may raise audit events itself
        try:
            real = os.path.realpath(os.fsdecode(path)) if "\0" not in os.fsdecode(path) else "NUL"
        finally:
            self.inside = inside
        if real != "NUL" and not real.startswith((str(inside), os.devnull, *allowed)):
            self.found.append(f"{event} {real}")


def _frames(frame: Any) -> Iterator[Any]:
    while frame is not None:
        yield frame
        frame = frame.f_back


WATCH = _Watch()


@contextmanager
def limited_memory(extra: int) -> Iterator[None]:
    """At most `extra` more bytes of address space for this process."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _too_slow(*_: object) -> None:
    raise HostileInputError(f"took more than {SECONDS} s")


def judge(folder: Path, attempt: Callable[[], object]) -> tuple[str, str]:
    """Try an input that may touch `folder` only: ("accepted" or "refused", "") or ("failed", why)."""
    WATCH.install()
    WATCH.found.clear()
    WATCH.inside = os.path.realpath(folder)
    old = signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(SECONDS)
    try:
        attempt()
        outcome, why = "accepted", ""
    except MSAError as error:
        outcome, why = _refused(error)
    except (Exception, HostileInputError):
        outcome, why = "failed", traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        WATCH.inside = None
    return ("failed", "; ".join(WATCH.found)) if WATCH.found else (outcome, why)


def _refused(error: MSAError) -> tuple[str, str]:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
            return "failed", f"out of memory behind {error!r:.300}"
        cause = cause.__cause__ or cause.__context__
    try:
        str(error).encode("utf-8")  # a message that any log can hold
    except UnicodeEncodeError:
        return "failed", f"a message with invalid Unicode: {error!r:.300}"
    return "refused", ""
