"""Every kernel compiles for a real GPU, which the interpreter does not check."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "compile_kernels.py"
SHARED_BYTES = 227 * 1024  # what a program may take on sm_90


def test_compiles_for_hopper(device, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, SCRIPT, "90", "bf16", "i8"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    assert all(int(line.split(": ")[1].split()[0]) <= SHARED_BYTES for line in lines)
