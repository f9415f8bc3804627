"""The builders of tiny banks, shared with the bank's own tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "bank"))
