"""A progress bar on a real terminal, and silence elsewhere."""

import contextlib
import os
import sys
import threading

import pytest

from facade import topics

pty = pytest.importorskip("pty", reason="pseudo-terminals exist on POSIX systems only")


@pytest.fixture
def terminal(monkeypatch):
    """Make stderr a terminal; calling the fixture ends that and returns what was shown."""
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream, pieces = os.fdopen(slave, "w", encoding="utf-8"), []

    def drain():
        with contextlib.suppress(OSError):  # what reading ends with once nobody holds the other side
            while piece := os.read(master, 4096):
                pieces.append(piece)

    reader = threading.Thread(target=drain)
    reader.start()

    def shown():
        stream.close()
        reader.join(60)
        return b"".join(pieces).decode("utf-8")

    shown.stream = stream
    yield shown
    stream.close()
    reader.join(60)
    os.close(master)


def test_a_terminal_shows_a_bar(memory, terminal, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.stream)
        memory.add(topics())
    shown = terminal()
    assert "encoding" in shown and "8/8" in shown
    assert shown.rstrip().endswith("\x1b[2K") or shown.endswith("\x1b[1A\x1b[2K")  # and takes it away at the end
    assert capsys.readouterr().out == ""


def test_the_bar_goes_away_after_an_error(memory, terminal, monkeypatch):
    def documents():
        yield from topics(2)
        raise OSError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.stream)
        with pytest.raises(OSError, match="gone"):
            memory.add(documents())
    assert terminal().rstrip().endswith(("\x1b[2K", "\x1b[?25h"))
    assert memory.add(topics()).added


def test_a_callback_replaces_the_bar(memory, terminal, monkeypatch):
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.stream)
        memory.add(topics(), on_progress=seen.append)
    assert len(seen) == 8 and terminal() == ""


def test_elsewhere_nothing_is_printed(full, capfd):
    full.ask("violin", max_new_tokens=2)
    full.compact()
    assert capfd.readouterr() == ("", "")
