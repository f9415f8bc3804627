"""Forked processes: PyTorch's threads stay in the parent, and a child that gave them work would wait for ever.

So the child of a process that has made a backbone computes with one thread. A process that is started (the `spawn`
method of multiprocessing) has threads of its own.
"""

from __future__ import annotations

import os
from functools import cache

import torch


@cache
def survive_forks() -> None:
    """See to it that children forked from now on do not wait for this process's threads; call it before computing.

    Processes forked before that have all threads: so a server that imports, forks, and then loads loses nothing.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
