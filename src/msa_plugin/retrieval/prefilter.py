"""An optional index in front of the exact router: it names candidates, exact scores rank them.

FAISS's (`faiss_index`), or a coarse pass over all chunks in a few bytes each (`coarse`). The index holds the collapsed
routing keys of a shared selection and answers with the largest inner products, so with an exhaustive index the ranking
is the exact one; any other index may miss documents, and how many it misses is measured against the exact search
(`Prefilter.recall_against_exact`), never assumed.
Shape legend: B rows, T question tokens, H heads, D head dim, W routing-key width, C chunks, N documents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msa_plugin.bank.segment import Segment
from msa_plugin.bank.spans import TILE_CHUNKS
from msa_plugin.bank.view import Selection, key_block
from msa_plugin.config import RoutingConfig
from msa_plugin.errors import ConfigError
from msa_plugin.retrieval.coarse import EVERYTHING, CoarseIndex
from msa_plugin.retrieval.faiss_index import FaissIndex
from msa_plugin.retrieval.queries import collapsed, key_width, voters
from msa_plugin.retrieval.scorer import TILE_TOKENS, RoutedDocuments, route
from msa_plugin.types import Fingerprint, KeyBlock

GROUP = "shared"
TRAIN_CHUNKS = 1 << 17
ADD_CHUNKS = 1 << 14
KINDS = ("faiss", "coarse")
_SYNTAX = (
    "faiss:FACTORY[@name=number,...], such as faiss:HNSW32 or faiss:IVF256,Flat@nprobe=32,candidates=200, or "
    f"coarse:NUMBERS[@candidates=number], such as coarse:{EVERYTHING} or coarse:128"
)
Index: TypeAlias = FaissIndex | CoarseIndex


@dataclass(frozen=True)
class PrefilterSpec:
    """Which index, and how many documents are handed to exact scoring.

    `factory` is a `faiss.index_factory` string, with FAISS search `parameters`, or, of kind `coarse`, how many leading
    numbers of each layer's key are read (`all`: int8 of all of them).
    """

    factory: str
    candidates: int = 128
    parameters: Mapping[str, float] = field(default_factory=dict)
    kind: str = "faiss"

    @classmethod
    def parse(cls, text: str) -> PrefilterSpec:
        """Read `KIND:FACTORY[@name=number,...]`; `candidates` is ours, every other name FAISS's own.

        Raises ConfigError for anything else.
        """
        kind, _, rest = text.partition(":")
        factory, _, options = rest.partition("@")
        if kind not in KINDS or not factory.strip():
            raise ConfigError(f"a prefilter is {_SYNTAX}; not {text!r}")
        given: dict[str, float] = {}
        for option in filter(None, options.split(",")):
            name, _, value = option.partition("=")
            try:
                given[name.strip()] = float(value)
            except ValueError:
                raise ConfigError(f"{option!r} in the prefilter {text!r} is not name=number; it is {_SYNTAX}") from None
        candidates = given.pop("candidates", cls.candidates)
        if candidates < 1 or candidates != int(candidates):
            raise ConfigError(f"a prefilter's candidates are a whole number of at least 1, not {candidates:g}")
        return cls(factory.strip(), int(candidates), given, kind)._checked(text)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        options = {"candidates": float(self.candidates), **self.parameters}
        given = ",".join(f"{name}={repr(value).removesuffix('.0')}" for name, value in options.items())
        return f"{self.kind}:{self.factory}@{given}"

    def _checked(self, text: str) -> PrefilterSpec:
        numbers = self.factory == EVERYTHING or (self.factory.isdecimal() and int(self.factory) > 0)
        if self.kind == "coarse" and (not numbers or self.parameters):
            raise ConfigError(f"a prefilter is {_SYNTAX}; not {text!r}")
        return self


def apart(name: str) -> tuple[str, str | None]:
    """A system's name such as `msa+coarse:128` without its prefilter, and that prefilter; None where it has none."""
    for kind in KINDS:
        plain, _, rest = name.partition(f"+{kind}:")
        if rest:
            return plain, f"{kind}:{rest}"
    return name, None


class Prefilter:
    """An index over the documents of one selection. Documents that it does not cover are always scored exactly."""

    def __init__(self, index: Index, selection: Selection, config: RoutingConfig, spec: PrefilterSpec) -> None:
        """Use `build` or `open`."""
        self.index, self.config, self.spec = index, config, spec
        self._owners = np.concatenate([_owners(*part) for part in selection.parts])
        self.documents = selection.documents
        self._covered = {segment.record.uuid: allowed for segment, allowed in selection.parts}

    @classmethod
    def build(cls, selection: Selection, config: RoutingConfig, spec: PrefilterSpec | str) -> Prefilter:
        """Index every chunk that `selection` allows.

        Memory beyond the index itself: `TRAIN_CHUNKS` sampled keys while it is trained, `ADD_CHUNKS` while it is
        filled, both as float32, and 8 bytes a chunk. Raises ConfigError for an adapter that selects per layer, an
        empty selection, and what FAISS refuses; MissingExtraError without FAISS.
        """
        spec = PrefilterSpec.parse(spec) if isinstance(spec, str) else spec
        _check(selection, config)
        width, panels = key_width(config), _key_panels(selection)
        index: Index
        if spec.kind == "coarse":
            index = CoarseIndex.build(spec.factory, width, width // config.key_width, panels)
        else:
            index = FaissIndex.build(spec.factory, spec.parameters, width, lambda: _sample(selection), panels)
        return cls(index, selection, config, spec)

    @classmethod
    def open(
        cls,
        folder: Path,
        made_with: Fingerprint,
        selection: Selection,
        config: RoutingConfig,
        spec: PrefilterSpec | str,
    ) -> Prefilter:
        """The index saved in `folder` for this very selection, or a new one, which is saved there.

        A bank that changed has another selection fingerprint, so an outdated index is never read. Raises as `build`.
        """
        spec = PrefilterSpec.parse(spec) if isinstance(spec, str) else spec
        suffix = CoarseIndex.suffix if spec.kind == "coarse" else FaissIndex.suffix
        path = folder / f"prefilter-{_key(made_with, selection, spec.factory)}{suffix}"
        index = _read(path, selection, config, spec)
        if index is not None:
            return cls(index, selection, config, spec)
        built = cls.build(selection, config, spec)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        built.index.save(temporary)
        temporary.replace(path)
        return built

    @property
    def bytes(self) -> int:
        """Memory of the index and of the table that leads from its chunks to documents."""
        return self.index.bytes + self._owners.nbytes

    def search(
        self,
        queries: Tensor,
        mask: Tensor,
        selection: Selection,
        k: int,
        *,
        tile_chunks: int = TILE_CHUNKS,
        tile_tokens: int = TILE_TOKENS,
    ) -> list[RoutedDocuments]:
        """The `k` best of each question's candidates by exact score, a result of one row [1, k'] for each question.

        Arguments as for `scorer.route`, with the bank's `selection` in place of blocks: documents that it does not
        allow are never returned, and those of segments that the index does not cover are scored exactly.
        """
        folded = voters(queries, mask, self.config, tile_tokens)
        flat = collapsed(folded.queries, self.config)
        votes = torch.ones(flat.shape[:2], dtype=torch.bool) if folded.votes is None else folded.votes.cpu()
        wanted = max(k, self.spec.candidates)
        admitted = self._admitted(selection)
        found = []
        for row in range(queries.shape[0]):
            vectors = np.ascontiguousarray(flat[row].float().cpu()[votes[row]].numpy())
            ordinals = self._candidates(vectors, wanted, admitted)
            one = slice(row, row + 1)
            blocks = self._blocks(selection, ordinals)
            best = route(
                queries[one], mask[one], blocks, k, self.config, tile_chunks=tile_chunks, tile_tokens=tile_tokens
            )
            found.append(best)
        return found

    def recall_against_exact(self, queries: Tensor, mask: Tensor, selection: Selection, k: int) -> float:
        """Share of the exact top `k` documents that `search` finds, mean over questions; arguments as for it."""
        exact = route(queries, mask, selection.key_blocks(GROUP), k, self.config)
        found = self.search(queries, mask, selection, k)
        return recall_against_exact(exact.ordinals.tolist(), [f.ordinals[0].tolist() for f in found])

    def _candidates(self, vectors: NDArray[np.float32], n: int, admitted: NDArray[np.int64] | None) -> list[int]:
        """Ordinals of about the `n` best of one question's `vectors` [t, W], best first by the index's own scores.

        Search deeper until every vector has named `n` documents: then none of the n best can be missing.
        """
        total = len(self._owners)
        n = min(n, self.documents if admitted is None else len(admitted))
        # A coarse pass reads everything however deep it looks: once is enough for documents of usual length.
        chunks_each = -(-total // self.documents) if self.spec.kind == "coarse" else 1
        depth = min(total, 2 * n * chunks_each)
        if depth == 0:
            return []
        while True:
            scores, chunks = self.index.search(vectors, depth)
            named = [self._named(s, c, admitted) for s, c in zip(scores, chunks, strict=True)]
            exhausted = depth == total or bool((chunks < 0).any())
            if exhausted or all(len(set(owners.tolist())) >= n for _, owners in named):
                break
            depth = min(total, 2 * depth)
        best: dict[int, float] = {}
        for values, owners in named:
            for value, owner in zip(values.tolist(), owners.tolist(), strict=True):
                best[owner] = max(value, best.get(owner, value))
        return sorted(best, key=lambda owner: (-best[owner], owner))[:n]

    def _named(
        self, scores: NDArray[np.float32], chunks: NDArray[np.int64], admitted: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores of one vector's hits and the documents they belong to, without those that may not be returned."""
        kept = chunks >= 0
        owners = self._owners[chunks[kept]]
        if admitted is None:
            return scores[kept], owners
        allowed = np.isin(owners, admitted)
        return scores[kept][allowed], owners[allowed]

    def _admitted(self, selection: Selection) -> NDArray[np.int64] | None:
        """Ordinals that a narrower selection allows; None when it allows everything that the index holds."""
        allowed = {segment.record.uuid: mask for segment, mask in selection.parts}
        if all(uuid in allowed and _same(allowed[uuid], mask) for uuid, mask in self._covered.items()):
            return None
        parts = [s.ordinals if mask is None else s.ordinals[mask] for s, mask in selection.parts]
        return torch.cat(parts).numpy() if parts else np.empty(0, dtype=np.int64)

    def _blocks(self, selection: Selection, ordinals: Sequence[int]) -> Iterator[KeyBlock]:
        """The candidates' keys gathered, and whole segments where the index does not know all allowed documents.

        Masking the candidates in the segments would have the scorer walk masks as long as the segments; a block for
        each segment would have it multiply a panel for each.
        """
        wanted = torch.tensor(sorted(ordinals), dtype=torch.int64)
        found: list[tuple[Segment, list[int]]] = []
        for segment, allowed in selection.parts:
            if segment.record.uuid not in self._covered or not _within(allowed, self._covered[segment.record.uuid]):
                yield key_block(segment, GROUP, allowed)
                continue
            segment.check()
            at = torch.searchsorted(segment.ordinals, wanted).clamp(max=segment.record.documents - 1)
            here = segment.ordinals[at] == wanted
            here = here if allowed is None else here & allowed[at]
            if positions := at[here].tolist():
                found.append((segment, positions))
        for dtype in {segment.keys[GROUP].dtype for segment, _ in found}:
            yield _gathered([part for part in found if part[0].keys[GROUP].dtype == dtype])


def recall_against_exact(exact: Sequence[Sequence[Hashable]], found: Sequence[Sequence[Hashable]]) -> float:
    """Share of the documents in `exact` that are also in `found`, mean over questions with any; 1.0 without one."""
    shares = [len(set(e) & set(f)) / len(set(e)) for e, f in zip(exact, found, strict=True) if e]
    return sum(shares) / len(shares) if shares else 1.0


def _check(selection: Selection, config: RoutingConfig) -> None:
    config.check_shared("a prefilter")
    if selection.documents == 0:
        raise ConfigError("there is no document to build a prefilter over; add documents first")


def _chunk_mask(segment: Segment, allowed: Tensor) -> Tensor:
    return torch.repeat_interleave(allowed, segment.key_offsets.diff())


def _owners(segment: Segment, allowed: Tensor | None) -> NDArray[np.int64]:
    """The document of each indexed chunk, in the order of `_key_panels`."""
    owners = torch.repeat_interleave(segment.ordinals, segment.key_offsets.diff())
    return (owners if allowed is None else owners[_chunk_mask(segment, allowed)]).numpy()


def _key_panels(selection: Selection) -> Iterator[NDArray[np.float32]]:
    """Every allowed key [c, W] as float32, a bounded number at a time."""
    for block, (segment, allowed) in zip(selection.key_blocks(GROUP), selection.parts, strict=True):
        kept = None if allowed is None else _chunk_mask(segment, allowed)
        for start in range(0, block.keys.shape[0], ADD_CHUNKS):
            rows = slice(start, start + ADD_CHUNKS)
            keys = block.keys[rows].float()
            keys = keys if block.scales is None else keys * block.scales[rows, None]
            part = keys if kept is None else keys[kept[rows]]
            if part.shape[0]:
                yield part.numpy()


def _sample(selection: Selection) -> NDArray[np.float32]:
    """At most `TRAIN_CHUNKS` of the allowed keys, drawn evenly from all segments."""
    total = sum(len(_owners(*part)) for part in selection.parts)
    chosen = np.sort(np.random.default_rng(0).permutation(total)[:TRAIN_CHUNKS])
    taken, start = [], 0
    for keys in _key_panels(selection):
        first, last = np.searchsorted(chosen, [start, start + len(keys)])
        taken.append(keys[chosen[first:last] - start])
        start += len(keys)
    return np.concatenate(taken)


def _gathered(found: Sequence[tuple[Segment, list[int]]]) -> KeyBlock:
    """The documents at these positions of segments, copied side by side into one small block."""
    keys, scales, counts = zip(*(segment.gathered(positions, GROUP) for segment, positions in found), strict=True)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), *counts)).cumsum(0)
    ordinals = torch.cat([segment.ordinals[positions] for segment, positions in found])
    return KeyBlock(torch.cat(keys), offsets, ordinals, None, None if scales[0] is None else torch.cat(scales))


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _within(allowed: Tensor | None, covered: Tensor | None) -> bool:
    """Whether everything allowed is covered."""
    if covered is None:
        return True
    return allowed is not None and not bool((allowed & ~covered).any())


def _key(made_with: Fingerprint, selection: Selection, factory: str) -> str:
    """What an index depends on, in 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps([asdict(made_with), factory], sort_keys=True).encode())
    for segment, allowed in selection.parts:
        digest.update(segment.record.uuid.encode())
        digest.update(b"" if allowed is None else np.packbits(allowed.numpy()).tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path, selection: Selection, config: RoutingConfig, spec: PrefilterSpec) -> Index | None:
    """A saved index that fits, or None."""
    if not path.exists():
        return None
    width = key_width(config)
    index: Index | None
    if spec.kind == "coarse":
        index = CoarseIndex.read(path, spec.factory, width, width // config.key_width)
    else:
        index = FaissIndex.read(path, spec.factory, spec.parameters, width)
    chunks = sum(len(_owners(*part)) for part in selection.parts)
    return index if index is not None and index.ntotal == chunks else None
