"""The switch: what runs where, what is said about it, and what is refused."""

import logging

import pytest
import torch

from msa_kernels import BackendUnavailableError, backend, pool_chunks
from msa_kernels.backend import use_triton


@pytest.fixture(autouse=True)
def fresh():
    backend._say.cache_clear()


def test_auto_on_a_cpu_is_torch_and_says_why_once(caplog):
    caplog.set_level(logging.INFO, logger="msa_kernels")
    cpu = [torch.zeros(1)]
    assert not use_triton("routing", "auto", cpu)
    assert not use_triton("routing", "auto", cpu)
    assert not use_triton("pooling", "auto", cpu)
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "routing runs in plain torch",
        "pooling runs in plain torch",
    ]


def test_torch_says_nothing(caplog):
    caplog.set_level(logging.INFO, logger="msa_kernels")
    assert not use_triton("routing", "torch", [torch.zeros(1)])
    assert not caplog.records


def test_triton_by_name_runs_or_raises(monkeypatch):
    cpu = [torch.zeros(1)]
    monkeypatch.setattr(backend, "_installed", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert use_triton("routing", "triton", cpu)
    assert not use_triton("routing", "auto", cpu)
    with pytest.raises(BackendUnavailableError, match="no kernel"):
        use_triton("routing", "triton", cpu, "no kernel for float64")
    monkeypatch.setattr(backend, "_installed", lambda: False)
    with pytest.raises(BackendUnavailableError, match=r"msa-plugin\[triton\]"):
        use_triton("routing", "triton", cpu)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendUnavailableError, match="not on a CUDA device"):
        use_triton("routing", "triton", cpu)


def test_tensors_on_several_devices():
    with pytest.raises(BackendUnavailableError, match="several devices"):
        use_triton("routing", "triton", [torch.zeros(1), torch.zeros(1, device="meta")])


def test_refuses_unknown_names_and_types():
    with pytest.raises(ValueError, match="unknown backend"):
        use_triton("routing", "cuda", [torch.zeros(1)])
    with pytest.raises(BackendUnavailableError):
        pool_chunks([torch.zeros(2, 2, dtype=torch.float64)], torch.tensor([0, 2]), backend="triton")
