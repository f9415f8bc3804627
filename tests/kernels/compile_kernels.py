"""Compiles every kernel for a GPU that need not be there, and prints a line for each.

Arguments: the compute capability without its point, and the types to compile for (all of them unless some are named).

The interpreter runs what the compiler refuses, so this is a check of its own. Run it without TRITON_INTERPRET.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from msa_kernels import triton_attention, triton_pooling, triton_routing

POINTERS = {
    "queries": "*fp32", "votes": "*u8", "factors": "*fp32", "scales": "*fp32", "owners": "*i32", "allowed": "*u8",
    "best": "*i32", "found": "*i64", "weights": "*fp32", "offsets": "*i64", "slopes": "*fp32", "ranges": "*i32",
    "own_mask": "*u8", "levels": "*fp32", "scale": "fp32",
}  # fmt: skip
Job = tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]


def jobs(kinds: Sequence[str]) -> Iterator[Job]:
    """Kernel, types of what is no int and not in POINTERS, constants, options."""
    for kind in kinds:
        yield from _routing(kind, "fp16" if kind == "i8" else kind)
    pick = {"K": 16, "TILE": triton_routing.TILE_DOCUMENTS, "FILTERED": True, "NEVER": triton_routing.NEVER}
    yield triton_routing._pick_kernel, {}, {**pick, "PICK": True}, {}
    yield triton_routing._pick_kernel, {}, {**pick, "PICK": False}, {}
    for kind in (kind for kind in kinds if kind != "i8"):
        yield from _pooling(f"*{kind}")
        yield from _attention(f"*{kind}")


def _routing(keys: str, parts: str) -> Iterator[Job]:
    types_of = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "i8": torch.int8}
    plan = triton_routing.PLANS[types_of[keys]]
    pieces = 1 if keys == "fp32" else 2
    types = {"keys": f"*{keys}", "parts": f"*{parts}"}
    yield triton_routing._split_kernel, types, {"TOKENS": 64, "DIM": 256, "PARTS": pieces}, {}
    shape = {"GROUPS": 3, "DIM": 96, "PADDED": 128, "PARTS": pieces, "CHUNKS": plan.chunks, "COLUMNS": plan.columns}
    how = {"FILTERED": True, "SCALED": keys == "i8", "PRECISION": "tf32x3" if keys == "fp32" else "tf32"}
    options = {"num_warps": plan.warps, "num_stages": plan.stages}
    for rows, tokens in ((4, 16), (1, 128)):
        yield triton_routing._maxima_kernel, types, {**shape, **how, "ROWS": rows, "TOKENS": tokens}, options


def _pooling(kind: str) -> Iterator[Job]:
    types = {f"{name}{i}": kind for name in ("x", "out", "grad", "into") for i in range(3)}
    tile = {"BLOCKS0": 8, "BLOCKS1": 8, "TOKENS": triton_pooling.TOKENS, "COLUMNS": triton_pooling.COLUMNS}
    yield triton_pooling._mean_kernel, types, {**tile, "WEIGHTED": True}, {}
    yield triton_pooling._spread_kernel, types, {**tile, "WEIGHTED": True, "SLOPES": True}, {}


def _attention(kind: str) -> Iterator[Job]:
    types = dict.fromkeys(("queries", "own_keys", "own_values", "out"), kind)
    types |= {"keys": "*fp16", "values": "*fp16", "parts": "*fp32"}
    shape = {"GROUP": 3, "PADDED_GROUP": 16, "DIM": 64, "RANGES": 16, "BLOCK": triton_attention.POSITIONS}
    yield triton_attention._attend_kernel, types, {**shape, "MASKED": True}, {"num_warps": 4, "num_stages": 2}
    yield triton_attention._merge_kernel, types, {"SPLITS": 8, "DIM": 64}, {}


def build(job: Job, capability: int) -> str:
    """Compile down to machine code; what came of it, in words."""
    kernel, types, constants, options = job
    names = kernel.arg_names
    known = {**POINTERS, **types}
    signature = {name: "constexpr" if name in constants else known.get(name, "i32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name] != "constexpr"}
    fixed = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, fixed, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return f"{kernel.__name__} {types.get('keys', types.get('x0', ''))}: {made.metadata.shared} bytes shared"


if __name__ == "__main__":
    for one in jobs(sys.argv[2:] or ("fp16", "bf16", "fp32", "i8")):
        print(build(one, int(sys.argv[1])))  # noqa: T201
