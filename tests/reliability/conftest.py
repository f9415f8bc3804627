"""The tools that these tests run in small, and the builders of tiny banks, shared with the bank's own tests."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools" / "reliability"), str(ROOT / "tests" / "bank"), str(ROOT / "tests" / "golden_banks")]

from bank_builder import open_bank  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "bank"


@pytest.fixture
def bank(folder):
    with open_bank(folder) as bank:
        yield bank
