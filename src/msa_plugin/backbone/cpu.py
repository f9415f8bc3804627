"""What this CPU is good at: bfloat16 pays only with AMX, and some virtual machines list AMX and then fault on it.

A bfloat16 product would end the whole process there (SIGILL), so it is tried once in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_LIMIT = "ONEDNN_MAX_CPU_ISA"
_BELOW_AMX = "AVX512_CORE_FP16"
_PROBE = "import torch; a = torch.ones(256, 256, dtype=torch.bfloat16); (a @ a).sum().item()"


def avoid_faulty_amx(cache: Path, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Keep oneDNN from AMX where AMX faults; True when that was necessary.

    oneDNN reads its limit at its first product, so this comes before any. A limit that the user has set is kept.
    The outcome is remembered in `cache` for each kind of machine and version of torch.
    """
    if _LIMIT in os.environ or "DNNL_MAX_CPU_ISA" in os.environ:
        return False
    machine = _amx_machine(cpuinfo)
    if machine is None or _works(cache / f"cpu-{machine}.json"):
        return False
    logger.warning("this CPU lists AMX but faults on it; bfloat16 runs on AVX-512 instead (%s=%s)", _LIMIT, _BELOW_AMX)
    os.environ[_LIMIT] = _BELOW_AMX
    return True


def fast_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether bfloat16 beats float32 here, which takes AMX; to be asked after `avoid_faulty_amx`."""
    limited = _LIMIT in os.environ or "DNNL_MAX_CPU_ISA" in os.environ
    return not limited and _amx_machine(cpuinfo) is not None


def trains_faster_in_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether autocast to bfloat16 beats float32 here: with AMX, or with AVX-512's products on processors without it.

    Answers are not computed so there: rounded weights change what a small model says, and twice the speed is no reason.
    """
    limited = _LIMIT in os.environ or "DNNL_MAX_CPU_ISA" in os.environ
    return fast_bfloat16(cpuinfo) or (not limited and "avx512_bf16" in _flags(cpuinfo))


def _flags(cpuinfo: Path) -> set[str]:
    try:
        return {flag for line in cpuinfo.read_text().splitlines() if line.startswith("flags") for flag in line.split()}
    except OSError:
        return set()


def _amx_machine(cpuinfo: Path) -> str | None:
    """A name for this kind of machine, or None when it does not offer AMX for bfloat16."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    about = sorted({line for line in lines if line.startswith(("flags", "model", "stepping", "microcode"))})
    if not any("amx_bf16" in line.split() for line in about):
        return None
    return hashlib.sha256("\n".join([*about, platform.release(), torch.__version__]).encode()).hexdigest()[:16]


def _works(remembered: Path) -> bool:
    try:
        return bool(json.loads(remembered.read_text())["amx"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    ran = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, check=False)
    works = ran.returncode != -signal.SIGILL  # any other failure says nothing about the CPU
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.write_text(json.dumps({"amx": works}))
    except OSError:
        logger.info("cannot remember in %s whether AMX works; it will be tried again", remembered)
    return works
