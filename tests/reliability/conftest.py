"""The tools that these tests run in small, and the builders of tiny banks, shared with the bank's own tests."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools" / "reliability"), str(ROOT / "tests" / "bank"), str(ROOT / "tests" / "golden_banks")]
