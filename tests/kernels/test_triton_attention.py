"""The decode kernel against its twin, and the twin against torch's own attention."""

import pytest
import torch
from torch.nn import functional as F

from msa_kernels import attend_ranges

STORED = 300
# Per row: whole stretches around tiles of 64, a single chunk, empty fillers, and nothing at all.
RANGES = (((0, 100), (7, 7), (135, 200)), ((5, 6), (9, 9), (299, 300)), ((0, 0), (3, 3), (8, 2)))
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def _case(device, dtype, heads, kv, dim, own, store=torch.float32):
    """Queries, store, ranges and the rows' caches; what must not be read is NaN."""
    generator = torch.Generator().manual_seed(heads + own)
    queries = torch.randn(3, heads, dim, generator=generator)
    content = torch.randn(STORED, 2, kv, dim, generator=generator)
    read = {chunk for row in RANGES for start, stop in row for chunk in range(start, stop)}
    content[[chunk for chunk in range(STORED) if chunk not in read]] = torch.nan
    own_keys, own_values = torch.randn(2, 3, kv, own, dim, generator=generator)
    mask = torch.rand(3, own, generator=generator) < 0.7
    mask[:2, -1:] = True
    hidden = ~mask[:, None, :, None]
    own_keys, own_values = (t.masked_fill(hidden, torch.nan).to(dtype).to(device) for t in (own_keys, own_values))
    content = content.to(store).to(device)
    ranges = torch.tensor(RANGES, dtype=torch.int32, device=device)
    return [queries.to(dtype).to(device), content[:, 0], content[:, 1], ranges, own_keys, own_values, mask.to(device)]


def _near(dtype):
    return {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}


@pytest.mark.parametrize(("heads", "kv", "dim"), [(4, 4, 16), (9, 3, 64), (8, 1, 40), (20, 1, 8)])
@pytest.mark.parametrize("own", [1, 65])
def test_equals_the_twin(device, dtype, poisoned, heads, kv, dim, own):
    case = _case(device, dtype, heads, kv, dim, own)
    found, twin = attend_ranges(*case, backend="triton"), attend_ranges(*case, backend="torch")
    assert found.dtype == dtype and twin.isfinite().all()
    torch.testing.assert_close(found, twin, **_near(dtype))


@pytest.mark.parametrize("own", [63, 64, 100])
def test_odd_lengths_of_the_rows_cache(device, poisoned, own):
    case = _case(device, torch.float32, 6, 2, 24, own)
    found = attend_ranges(*case, backend="triton")
    torch.testing.assert_close(found, attend_ranges(*case, backend="torch"), **_near(torch.float32))


@pytest.mark.parametrize("splits", [1, 2, 3, 5])
def test_any_number_of_splits(device, poisoned, splits):
    from msa_kernels.triton_attention import attend_ranges as attend

    case = _case(device, torch.float32, 4, 2, 16, 100)
    twin = attend_ranges(*case, scale=0.3, backend="torch")
    torch.testing.assert_close(attend(*case, 0.3, 200, splits), twin, **_near(torch.float32))


def test_a_store_of_another_type(device, poisoned):
    case = _case(device, torch.float32, 4, 2, 16, 3, store=torch.float16)
    found = attend_ranges(*case, longest=165, backend="triton")
    torch.testing.assert_close(found, attend_ranges(*case, backend="torch"), **_near(torch.float32))


def test_without_mask_without_ranges_and_with_nothing(device, poisoned):
    queries, keys, values, ranges, own_keys, own_values, _ = _case(device, torch.float32, 4, 2, 16, 5)
    own_keys, own_values = own_keys.nan_to_num(1.0), own_values.nan_to_num(1.0)
    for spans in (ranges, ranges[:, :0]):
        found = attend_ranges(queries, keys, values, spans, own_keys, own_values, backend="triton")
        twin = attend_ranges(queries, keys, values, spans, own_keys, own_values, backend="torch")
        torch.testing.assert_close(found, twin)
    empty = own_keys[:, :, :0]
    for backend in ("torch", "triton"):
        out = attend_ranges(queries, keys, values, ranges[:, :0], empty, empty, backend=backend)
        assert not out.any()


def test_large_logits_do_not_overflow(device):
    case = _case(device, torch.float32, 4, 2, 16, 5)
    found = attend_ranges(*case, scale=300.0, backend="triton")
    torch.testing.assert_close(found, attend_ranges(*case, scale=300.0, backend="torch"), atol=1e-3, rtol=1e-3)


def test_twin_equals_gathering_and_torchs_attention():
    queries, keys, values, ranges, own_keys, own_values, mask = _case("cpu", torch.float32, 9, 3, 8, 6)
    found = attend_ranges(queries, keys, values, ranges, own_keys, own_values, mask)
    for row in range(2):
        index = torch.cat([torch.arange(a, b) for a, b in RANGES[row]])
        k = torch.cat([keys[index].transpose(0, 1), own_keys[row][:, mask[row]]], 1)
        v = torch.cat([values[index].transpose(0, 1), own_values[row][:, mask[row]]], 1)
        expected = F.scaled_dot_product_attention(
            queries[row][:, None], k.repeat_interleave(3, 0), v.repeat_interleave(3, 0)
        )
        torch.testing.assert_close(found[row], expected[:, 0])


def test_refuses_what_does_not_fit():
    case = _case("cpu", torch.float32, 4, 2, 16, 3)
    queries, keys, values, ranges, own_keys, own_values, mask = case
    wrong = [
        (queries[:, :3], keys, values, ranges, own_keys, own_values, mask),
        (queries, keys[:, :1], values, ranges, own_keys, own_values, mask),
        (queries, keys, values, ranges[:2], own_keys, own_values, mask),
        (queries, keys, values, ranges, own_keys[:2], own_values, mask),
        (queries, keys, values, ranges, own_keys, own_values, mask[:, :2]),
    ]
    for given in wrong:
        with pytest.raises(ValueError):
            attend_ranges(*given)
