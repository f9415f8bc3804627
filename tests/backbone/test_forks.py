"""A process that asked with several threads, and is forked: its child opens a memory of its own and asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import os, sys
import torch
torch.set_num_threads(2)
from msa_plugin.errors import BankError
from msa_plugin.memory import LatentMemory
from facade import opened, topics
from tiny import tiny_backbone
from pathlib import Path

def asked(folder, backbone):
    folder.mkdir()
    with opened(folder, backbone) as memory:
        memory.add(topics(3))
        answer = memory.ask("What of the glacier?", max_new_tokens=4)
        torch.ones(500, 500) @ torch.ones(500, 500)  # a product that is worth several threads
        return answer.text, [s.id for s in answer.sources]

here, backbone = Path(sys.argv[1]), tiny_backbone()
expected = asked(here / "parent", backbone)
inherited = opened(here / "parent", backbone)
if (pid := os.fork()) == 0:
    try:
        inherited.retrieve("glacier")
    except BankError as error:
        assert "spawn" in str(error)
        assert asked(here / "loaded", tiny_backbone()) == asked(here / "inherited", backbone) == expected
        os._exit(7)
    os._exit(1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_that_opens_its_own_memory_answers(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], env=environment, timeout=240, capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr
