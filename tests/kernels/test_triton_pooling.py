"""The pooling kernel against its twin `mean_pool`, forward and backward."""

import pytest
import torch

from msa_kernels import chunk_offsets, pool_chunks
from msa_kernels.reference import mean_pool

LENGTHS = (100, 0, 1, 63, 64, 65)
SHAPES = ((3, 20), (7,), (2, 65))
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def _inputs(device, dtype, shapes=SHAPES):
    generator = torch.Generator().manual_seed(3)
    made = (torch.randn(sum(LENGTHS), *shape, generator=generator) for shape in shapes)
    return [x.to(device=device, dtype=dtype).requires_grad_() for x in made]


def _weights(device, kind):
    if kind == "plain":
        return None
    weights = torch.rand(sum(LENGTHS), generator=torch.Generator().manual_seed(4)) + 0.1
    weights[:64] = 0  # the first chunk gets its plain mean
    return weights.to(device).requires_grad_()


def _offsets(device, pooling=64):
    offsets = chunk_offsets(LENGTHS, pooling)[0]
    return torch.cat([offsets[:1], offsets, offsets[-1:]]).to(device)  # a range of nothing at each end


@pytest.mark.parametrize("kind", ["plain", "weighted"])
@pytest.mark.parametrize("pooling", [64, 100])
def test_means_and_gradients_equal_the_twin(device, dtype, poisoned, pooling, kind):
    inputs, weights, offsets = _inputs(device, dtype), _weights(device, kind), _offsets(device, pooling)
    pooled = pool_chunks(inputs, offsets, weights, backend="triton")
    twins = tuple(mean_pool(x, offsets, weights) for x in inputs)
    near = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(pooled, twins, **near)
    pulls = [torch.randn_like(x) for x in pooled]
    wanted = inputs if weights is None else [*inputs, weights]
    found = torch.autograd.grad(pooled, wanted, pulls)
    torch.testing.assert_close(found, torch.autograd.grad(twins, wanted, pulls), **near)


def test_chunks_of_one_token(device, poisoned):
    x = torch.randn(3, 4, device=device, requires_grad=True)
    weights = torch.tensor([0.5, 0.0, 2.0], device=device, requires_grad=True)
    (pooled,) = pool_chunks([x], torch.arange(4, device=device), weights, backend="triton")
    torch.testing.assert_close(pooled, x)
    pooled.square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())
    torch.testing.assert_close(weights.grad, torch.zeros_like(weights), atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_inputs(device, poisoned, count):
    inputs, offsets = _inputs(device, torch.float32, [(5,), (2, 3), (4,), (129,)][:count]), _offsets(device)
    pooled = pool_chunks(inputs, offsets, backend="triton")
    torch.testing.assert_close(pooled, tuple(mean_pool(x, offsets) for x in inputs))
    assert [p.shape[1:] for p in pooled] == [x.shape[1:] for x in inputs]


def test_inputs_of_several_types_keep_them(device):
    inputs = [_inputs(device, torch.float16)[0], _inputs(device, torch.float32)[1]]
    pooled = pool_chunks(inputs, _offsets(device), backend="triton")
    assert [p.dtype for p in pooled] == [torch.float16, torch.float32]
    torch.testing.assert_close(pooled, tuple(mean_pool(x, _offsets(device)) for x in inputs))


def test_an_unused_output_gives_no_gradient_to_the_others(device):
    first, second = _inputs(device, torch.float32, [(4,), (6,)])
    pooled = pool_chunks([first, second], _offsets(device), backend="triton")
    pooled[1].sum().backward()
    assert not first.grad.any() and second.grad.sum().item() == pytest.approx(6 * len(pooled[0][2:-1]), rel=0.2)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_no_chunks(device, backend):
    (pooled,) = pool_chunks([torch.empty(0, 3, device=device)], torch.zeros(1, dtype=torch.int64), backend=backend)
    assert pooled.shape == (0, 3)


def test_the_switch_keeps_gradients_exact():
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(6, dtype=torch.float64).add(0.1).requires_grad_()
    offsets = torch.tensor([0, 1, 4, 6])
    assert torch.autograd.gradcheck(lambda a, w: pool_chunks([a, a.exp()], offsets, w), (x, weights))


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError):
        pool_chunks([], torch.tensor([0]))
    with pytest.raises(ValueError):
        pool_chunks([torch.zeros(4, 2), torch.zeros(5, 2)], torch.tensor([0, 4]))
    with pytest.raises(ValueError):
        pool_chunks([torch.zeros(4, 2)], torch.tensor([0, 4]), torch.ones(3))
