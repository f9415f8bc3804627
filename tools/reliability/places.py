"""Imported before them: where the tests keep what these tools build banks and models with."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2] / "tests"

for _place in (TESTS / "golden_banks", TESTS / "bank", TESTS):
    if str(_place) not in sys.path:
        sys.path.insert(0, str(_place))
