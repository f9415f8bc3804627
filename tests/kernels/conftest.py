"""Kernels are compared with their twins on a GPU where there is one, and in Triton's interpreter otherwise."""

import pytest
import torch

ON_GPU = torch.cuda.is_available()
# The interpreter of earlier versions cannot count loops with the numpy of today.
OLDEST = None if ON_GPU else "3.7"


@pytest.fixture
def device():
    """Where the kernels run; skips where Triton is missing."""
    reason = f"Triton {OLDEST or ''} is not installed: pip install 'msa-plugin[triton]'"
    pytest.importorskip("triton", minversion=OLDEST, reason=reason)
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture
def poisoned():
    """Memory that nobody has written holds NaN (the largest number, for integers)."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def dtype(request):
    """Every type on a GPU; the interpreter's products are wrong in bfloat16."""
    if request.param == torch.bfloat16 and not ON_GPU:
        pytest.skip("bfloat16 needs a GPU: the interpreter's products are wrong in it")
    return request.param
