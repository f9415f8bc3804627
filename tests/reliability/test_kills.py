"""A few dozen kills; `kills.py --kills 1000 --every-point --facade 100` is the long run."""

import os

import pytest
from kill_levels import BankLevel, FacadeLevel
from kill_repairs import APART, kills_of_migrations, kills_of_repairs
from kills import POINTS, kills_at_points, random_kills

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")


def test_kills_at_random_moments(tmp_path):
    figures = random_kills(BankLevel(), tmp_path / "bank", kills=25, seed=3)
    assert figures["counts"]["kills"] == 25
    assert figures["counts"]["in flight, absent"] > 2 and figures["counts"]["in flight, whole"] > 0


def test_kills_at_every_point(tmp_path):
    figures = kills_at_points(BankLevel(), tmp_path, hits=1, seed=4)
    assert {point for point, kills in figures["at"].items() if kills} == set(POINTS) - set(APART)
    assert figures["counts"]["in flight, absent"] > 5 and figures["counts"]["in flight, whole"] > 2


def test_kills_of_what_encodes(tmp_path):
    figures = random_kills(FacadeLevel(tmp_path / "scratch"), tmp_path / "bank", kills=8, seed=5)
    assert figures["counts"]["kills"] == 8


def test_kills_of_a_repair(tmp_path):
    kills_of_repairs(tmp_path)


def test_kills_of_a_migration(tmp_path):
    kills_of_migrations(tmp_path)
