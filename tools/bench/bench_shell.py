"""What the scripts in this folder share: options from a function's arguments, a line of JSON for each row, memories.

Every script measures ratios in one run: `measure(backbone, adapter, ...)` yields its rows, and `python SCRIPT --help`
tells its options.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.errors import ConfigError, MSAError
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Document

Row = dict[str, Any]


def options(measure: Callable[..., Any]) -> argparse.ArgumentParser:
    """An option for each keyword argument of `measure`, read as its default's kind; texts stay what they are."""
    parser = argparse.ArgumentParser(description=inspect.getmodule(measure).__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", "-m", default=os.environ.get("MSA_MODEL"), help="folder, .gguf file or hub id")
    parser.add_argument("--adapter", "-a", default=os.environ.get("MSA_ADAPTER"), help="folder of an adapter")
    for name, one in inspect.signature(measure).parameters.items():
        flag, kind = f"--{name.replace('_', '-')}", type(one.default)
        if one.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=one.default)
        elif one.default is inspect.Parameter.empty:
            parser.add_argument(flag, required=True)
        else:
            parser.add_argument(flag, type=int if kind is int else str, default=one.default)
    return parser


def main(measure: Callable[..., Iterable[Row]]) -> None:
    """Run a script: each row is a line on stdout as soon as it is measured."""
    given = vars(options(measure).parse_args())
    model, adapter = given.pop("model"), given.pop("adapter")
    try:
        for row in measure(Backbone.load(model), adapter and Path(adapter), **given):
            sys.stdout.write(json.dumps(row, default=str) + "\n")
            sys.stdout.flush()
    except MSAError as error:
        sys.exit(f"error: {error}")


def words(given: str | Iterable[str], separator: str = ",") -> tuple[str, ...]:
    """The parts of a text between its separators; anything else as it is."""
    parts = given.split(separator) if isinstance(given, str) else given
    return tuple(part.strip() for part in parts if part.strip())


def clock(cpu: bool) -> Callable[[], float]:
    """Seconds of the wall, or (`cpu`) of this process alone, which leaves out others on the same machine."""
    if cpu and torch.get_num_threads() > 1:
        raise ConfigError("seconds of several threads add up: count them with one, OMP_NUM_THREADS=1")
    return time.process_time if cpu else time.perf_counter


def medians(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over repetitions."""
    given = list(rows)
    return {name: median(row[name] for row in given) for name in given[0]}


@contextmanager
def scratch_memory(
    backbone: Backbone, adapter: Adapter | Path | str | None, documents: Iterable[Document] = (), **settings: Any
) -> Iterator[LatentMemory]:
    """A memory in a temporary folder, with these documents."""
    with (
        tempfile.TemporaryDirectory() as folder,
        LatentMemory.open(Path(folder) / "bank", model=backbone, adapter=adapter, **settings) as memory,
    ):
        if given := list(documents):
            memory.add(given, on_progress=lambda _: None)
        yield memory
