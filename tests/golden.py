"""The recorded case `D_text` of the golden data: its traces, checkpoint and tokenizer, and a bank of its documents."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(os.environ.get("MSA_GOLDEN") or Path(__file__).resolve().parents[2] / "shared" / "golden")
CASE = ROOT / "D_text"
absent = pytest.mark.skipif(not (CASE / "trace.json").is_file(), reason=f"no {CASE}; set MSA_GOLDEN")


@cache
def trace() -> dict[str, Any]:
    """Everything that was recorded at text level."""
    return json.loads((CASE / "trace.json").read_text(encoding="utf-8"))


def calls() -> list[tuple[str, int]]:
    """Scenario and index of every recorded `generate` call."""
    if not (CASE / "trace.json").is_file():
        return []
    return [(name, i) for name, rounds in trace().items() if name.startswith("scenario") for i in range(len(rounds))]
