"""The engine where the accelerator is: what it computes on a GPU is what it computes on a CPU, and streams end whole.

`tools/bench/gpu_check.py` runs these on a GPU; elsewhere they run on the CPU, which keeps them from rotting.
"""

import pytest
import torch

from facade import PER_LAYER, topics
from msa_kernels import pool_chunks, route_topk
from msa_plugin.bank.device_transfer import transfer_to
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter, tiny_backbone

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

MODES = {
    "text": ({}, {}),
    "latent": ({"read_latent": True}, {}),
    "kv": ({}, {"reading": "kv"}),
    "per layer": ({**PER_LAYER, "read_latent": True}, {}),
    "int8 keys": ({}, {"keys_dtype": "int8"}),
    "tiers": ({"read_latent": True}, {"tiers": {"device_bytes": 1 << 16, "host_bytes": 1 << 18}}),
}


def backbone_on(device):
    found = tiny_backbone()
    found.model.to(device)
    return found


def answers(folder, device, mode):
    routing, settings = MODES[mode]
    backbone = backbone_on(device)
    with LatentMemory.open(folder, model=backbone, adapter=tiny_adapter(backbone, **routing), **settings) as memory:
        memory.add(topics())
        hits = memory.retrieve(["the violin", "a lighthouse"], k=4)
        pieces = list(memory.stream("the violin", max_new_tokens=8))
        return [[(h.id, h.score) for h in row] for row in hits], "".join(pieces)


@pytest.mark.parametrize("mode", MODES)
def test_a_device_computes_what_the_cpu_does(tmp_path, mode):
    here, said = answers(tmp_path / "cpu", torch.device("cpu"), mode)
    there, told = answers(tmp_path / "device", DEVICE, mode)
    assert told == said
    for one, other in zip(here, there, strict=True):
        assert [i for i, _ in one] == [i for i, _ in other]
        assert [s for _, s in one] == pytest.approx([s for _, s in other], abs=2e-3)


def test_copies_beside_the_device_s_work_arrive_whole():
    transfer = transfer_to(DEVICE)
    parts = [[torch.arange(1000, dtype=torch.float32) * i, torch.ones(7) * i] for i in range(8)]
    sent = [transfer.send([transfer.kept(t) for t in some]) for some in parts]
    for some, arrival in zip(parts, sent, strict=True):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(arrival.wait(), some, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_kernels_equal_their_plain_twins(dtype):
    """On a GPU `auto` is Triton's kernel; on a CPU both are the plain one."""
    generator = torch.Generator().manual_seed(1)
    keys = torch.nn.functional.normalize(torch.randn(4096, 64, generator=generator), dim=1).to(DEVICE, dtype)
    offsets = torch.arange(0, 4097, 4, device=DEVICE)
    queries = torch.nn.functional.normalize(torch.randn(2, 1, 8, 64, generator=generator), dim=3).to(DEVICE)
    votes = torch.ones(2, 8, dtype=torch.bool, device=DEVICE)
    found, plain = (route_topk(queries, votes, keys, offsets, 8, backend=how) for how in ("auto", "torch"))
    assert torch.allclose(found.scores, plain.scores, atol=2e-3)
    assert (found.documents == plain.documents).float().mean() > 0.9
    states = torch.randn(512, 64, generator=generator).to(DEVICE, dtype)
    cuts = torch.tensor([0, 100, 228, 512], device=DEVICE)
    [pooled], [twin] = (pool_chunks([states], cuts, backend=how) for how in ("auto", "torch"))
    assert torch.allclose(pooled.float(), twin.float(), atol=2e-2)
