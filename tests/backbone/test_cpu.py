"""A CPU that lists AMX and faults on it must not take the process down."""

import os
import signal
import subprocess

import pytest

from msa_plugin.backbone import cpu

AMX = "model name\t: Some Xeon\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n"


@pytest.fixture
def unlimited(monkeypatch):
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.setenv(name, "")  # so that what the code sets is undone afterwards
        monkeypatch.delenv(name)


def info(folder, text):
    path = folder / "cpuinfo"
    path.write_text(text)
    return path


def answering(monkeypatch, code):
    probes = []

    def run(*args, **kwargs):
        probes.append(code)
        return subprocess.CompletedProcess([], code)

    monkeypatch.setattr(cpu.subprocess, "run", run)
    return probes


@pytest.mark.parametrize(("code", "faulty"), [(0, False), (1, False), (-signal.SIGILL, True)])
def test_only_an_illegal_instruction_limits_onednn(tmp_path, monkeypatch, unlimited, code, faulty):
    probes = answering(monkeypatch, code)
    cpuinfo = info(tmp_path, AMX)
    assert cpu.avoid_faulty_amx(tmp_path / "cache", cpuinfo) is faulty
    assert os.environ.get("ONEDNN_MAX_CPU_ISA") == ("AVX512_CORE_FP16" if faulty else None)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert cpu.avoid_faulty_amx(tmp_path / "cache", cpuinfo) is faulty
    assert len(probes) == 1, "the outcome was not remembered"


def test_other_machines_and_users_who_decided_are_left_alone(tmp_path, monkeypatch, unlimited):
    probes = answering(monkeypatch, -signal.SIGILL)
    assert not cpu.avoid_faulty_amx(tmp_path, info(tmp_path, "flags\t: fpu avx2\n"))
    assert not cpu.avoid_faulty_amx(tmp_path, tmp_path / "absent")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not cpu.avoid_faulty_amx(tmp_path, info(tmp_path, AMX))
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert not probes


def test_a_cache_that_cannot_be_read_or_written_is_no_obstacle(tmp_path, monkeypatch, unlimited):
    probes = answering(monkeypatch, -signal.SIGILL)
    blocked = tmp_path / "cache"
    blocked.write_text("a file where the folder should be")
    assert cpu.avoid_faulty_amx(blocked, info(tmp_path, AMX))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert cpu.avoid_faulty_amx(blocked, info(tmp_path, AMX))
    assert len(probes) == 2


def test_bfloat16_is_fast_only_with_amx_that_works(tmp_path, monkeypatch, unlimited):
    cpuinfo = info(tmp_path, AMX)
    answering(monkeypatch, 0)
    assert not cpu.avoid_faulty_amx(tmp_path / "sound", cpuinfo) and cpu.fast_bfloat16(cpuinfo)
    answering(monkeypatch, -signal.SIGILL)
    assert cpu.avoid_faulty_amx(tmp_path / "faulty", cpuinfo) and not cpu.fast_bfloat16(cpuinfo)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert not cpu.fast_bfloat16(info(tmp_path, "flags\t: fpu avx2\n"))


def test_training_is_faster_in_bfloat16_with_avx512_too(tmp_path, monkeypatch, unlimited):
    for flags, faster in (("fpu avx2 avx512f", False), ("fpu avx512f avx512_bf16", True)):
        cpuinfo = info(tmp_path, f"model name\t: avx512_bf16 in name\nflags\t: {flags}\n")
        assert cpu.trains_faster_in_bfloat16(cpuinfo) is faster and not cpu.fast_bfloat16(cpuinfo)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not cpu.trains_faster_in_bfloat16(cpuinfo)
    assert not cpu.trains_faster_in_bfloat16(tmp_path / "absent")


def test_products_in_bfloat16_run_here():
    import torch

    a = torch.ones(64, 64, dtype=torch.bfloat16)
    assert float((a @ a)[0, 0]) == 64.0
