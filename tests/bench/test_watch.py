"""The bar of a run: there on a terminal, silent elsewhere; and the peak of memory."""

from __future__ import annotations

import io

import numpy as np
import pytest

from msa_plugin.bench.watch import Watch
from msa_plugin.measuring.peak import peak_bytes, reset_peak


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def work(stream):
    with Watch(stream) as watch:
        watch.expect(4)
        watch.say("[toy]: msa")
        watch.step("encoding toy", 1, 2)
        watch.step("encoding toy", 2, 2)
        watch.advance(3)
    return "" if stream is None else stream.getvalue()


def test_a_terminal_shows_where_the_run_is(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    shown = work(Terminal())
    assert "[toy]: msa" in shown
    assert "3/4" in shown


def test_elsewhere_it_is_silent():
    assert work(io.StringIO()) == ""
    assert work(None) == ""


def test_the_peak_can_be_forgotten():
    size = 300 << 20
    before = peak_bytes()
    block = np.ones(size, dtype=np.uint8)
    high = peak_bytes()
    assert high >= size // 2 > 0
    assert high >= before
    del block
    if not reset_peak():
        pytest.skip("this system cannot forget a peak")
    assert peak_bytes() < high - size // 2
