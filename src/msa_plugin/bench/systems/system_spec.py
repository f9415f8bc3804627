"""Names of systems as the command line gives them, read into a tree and checked before anything is loaded.

    name     = kind [":" argument] {suffix}
    suffix   = "+rerank" ["@" depth] [":" cross-encoder]   |   "+faiss:" index   |   "+coarse:" numbers
             | "+lexical" [":" weight]  |   "+titles" [":" weight]  |   "+mentions" [":" weight]

`+rerank` ranks what was found again, by the likelihood of the question given the passage or by a cross-encoder.
`+lexical` adds words to scores, `+titles` and `+mentions` names: for memories as a user sets them, for others the same
over the whole corpus. What belongs together goes in parentheses: `iterative:(dense+rerank)` reranks in every round,
`iterative:dense+rerank` only at the end. A fusion's members are separated by "~" or, where the name stands alone, by
commas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BeforeValidator

from msa_plugin.errors import ConfigError
from msa_plugin.retrieval.prefilter import KINDS, PrefilterSpec

NAMES = {
    "msa": "MSA, one round of routing; answers from what it chooses to read (+faiss:... or +coarse:... prefilters)",
    "msa-interleave": "MSA with rounds of Memory Interleave (+faiss:... or +coarse:... prefilters)",
    "bm25": "BM25 (bm25s) with English stemming and stop words",
    "dense": "a sentence-transformers model, by default all-MiniLM-L6-v2, and exact FAISS search: dense[:MODEL]; "
    "dense:mpnet is all-mpnet-base-v2, dense:e5-small multilingual-e5-small in 4 bits",
    "dense-same-backbone": "the backbone's own last hidden states, mean pooled, and exact FAISS search",
    "hybrid": "reciprocal rank fusion of bm25 and dense",
    "fusion": "reciprocal rank fusion of any systems: fusion:msa~bm25",
    "iterative": "Iter-RetGen: what was found is appended to the query of the next round: iterative[:BASE]",
    "decompose": "Auto-RAG: the model writes the next round's query from what was found: decompose[:BASE]",
    "full-context": "every passage in the prompt, where the backbone's window holds them all",
    "closed-book": "the backbone alone, without documents",
    "gold": "the passages that the data set names as the right ones: what a perfect search would give",
    "lures": "passages that look right and are not (BM25's best without those that answer): to abstain is right",
}
MEMORIES = ("msa", "msa-interleave")
_SCORED = (*MEMORIES, "dense", "dense-same-backbone")  # every passage has a cosine that words can be added to
_NAMED = (*_SCORED, "bm25", "hybrid", "fusion")
_ROUNDS = ("iterative", "decompose")
_ANSWER_ONLY = ("full-context", "closed-book", "gold", "lures")
_SUFFIX = re.compile(r"\+(?=(?:rerank|faiss|coarse|lexical|titles|mentions)(?:[:@+]|$))")
_WEIGHED = re.compile(r"(?:lexical|titles|mentions)(?::(?P<weight>\d+(?:\.\d+)?))?")
WEIGHTS = {"lexical": 0.7, "titles": 0.4, "mentions": 0.4}  # where a name gives none; in the order of suffixes
_RERANK = re.compile(r"rerank(?:@(?P<depth>\d+))?(?::(?P<model>.+))?")


def _named(given: Any) -> Any:
    return parse(given) if isinstance(given, str) else given


Systems = Annotated[tuple[str, ...], BeforeValidator(_named)]  # text is parsed


@dataclass(frozen=True)
class Rerank:
    """Rank the best `depth` (None: as the options say) again, with a cross-encoder or (None) the backbone."""

    depth: int | None
    model: str | None


@dataclass(frozen=True)
class Parsed:
    """A system's name, taken apart. `bases` are the systems that it is made of."""

    kind: str
    argument: str | None = None
    bases: tuple[Parsed, ...] = ()
    reranks: tuple[Rerank, ...] = ()
    prefilter: str | None = None
    lexical: float = 0.0
    titles: float = 0.0
    mentions: float = 0.0

    @property
    def finds(self) -> bool:
        """Whether it ranks passages."""
        return self.kind not in _ANSWER_ONLY


def parse(names: str | Sequence[str]) -> tuple[str, ...]:
    """Distinct names, checked; a string holds several, separated by blanks or by commas outside parentheses.

    Raises ConfigError for names that are unknown, malformed or repeated, and when there is none.
    """
    given = _split(names, ", \n\t") if isinstance(names, str) else names
    found = tuple(name for name in given if name)
    if not found:
        raise ConfigError(f"name at least one system: {', '.join(NAMES)}")
    for name in found:
        parse_one(name)
    if repeated := sorted({name for name in found if found.count(name) > 1}):
        raise ConfigError(f"{', '.join(repeated)} is named twice")
    return found


def behind(systems: Sequence[str], prefilter: str | None) -> tuple[str, ...]:
    """The memories among `systems` once more, behind an index. Raises ConfigError where there is none."""
    if prefilter is None:
        return ()
    index = PrefilterSpec.parse(prefilter)
    if found := tuple(f"{name}+{index}" for name in systems if name in MEMORIES):
        return found
    raise ConfigError("--prefilter is for msa and msa-interleave; name one of them in --systems")


def parse_one(name: str) -> Parsed:
    """Take one name apart. Raises ConfigError."""
    plain, *suffixes = _suffixed(_without_parentheses(name.strip()))
    kind, colon, argument = plain.partition(":")
    if kind not in NAMES:
        raise ConfigError(f"there is no system {kind!r} (in {name!r}); there are {', '.join(NAMES)}")
    if bool(colon) != bool(argument) or (argument and kind not in ("dense", "fusion", *_ROUNDS)):
        raise ConfigError(f"{kind} takes no argument, but {name!r} gives it {argument!r}")
    parsed = Parsed(kind, (argument or None) if kind == "dense" else None, tuple(_bases(kind, argument, name)))
    for suffix in suffixes:
        parsed = _with_suffix(parsed, suffix, name)
    return parsed


def _bases(kind: str, argument: str, name: str) -> Iterator[Parsed]:
    members: list[str] = []
    if kind == "hybrid":
        members = ["bm25", "dense"]
    elif kind in _ROUNDS:
        members = [argument or "dense"]
    elif kind == "fusion":
        members = _split(_without_parentheses(argument), "~,")
        if len(members) < 2:
            raise ConfigError(f"a fusion has at least two members, such as fusion:msa~bm25; not {name!r}")
    for member in members:
        base = parse_one(member)
        if not base.finds:
            raise ConfigError(f"{member} does not rank passages, so that {name!r} cannot be built on it")
        yield base


def _with_suffix(parsed: Parsed, suffix: str, name: str) -> Parsed:
    if (kind := next((kind for kind in WEIGHTS if suffix.startswith(kind)), None)) is not None:
        return _weighted(parsed, kind, suffix, name)
    if suffix.startswith(KINDS):
        if parsed.kind not in MEMORIES or parsed.reranks or parsed.prefilter:
            raise ConfigError(f"one prefilter directly behind msa or msa-interleave, not as in {name!r}")
        return replace(parsed, prefilter=str(PrefilterSpec.parse(suffix)))
    match = _RERANK.fullmatch(suffix)
    if match is None or match["depth"] == "0":
        raise ConfigError(f"{suffix!r} in {name!r} is not rerank[@DEPTH][:MODEL]")
    if not parsed.finds:
        raise ConfigError(f"{parsed.kind} does not rank passages: there is nothing to rerank in {name!r}")
    rerank = Rerank(int(match["depth"]) if match["depth"] else None, match["model"])
    return replace(parsed, reranks=(*parsed.reranks, rerank))


def _weighted(parsed: Parsed, kind: str, suffix: str, name: str) -> Parsed:
    """`+lexical`, `+titles` or `+mentions`, once each and in that order, before any reranking."""
    match = _WEIGHED.fullmatch(suffix)
    if match is None or not (weight := float(match["weight"] or WEIGHTS[kind])):
        raise ConfigError(f"{suffix!r} in {name!r} is not {kind}[:WEIGHT] with a weight above 0")
    order = list(WEIGHTS)
    allowed, later = _SCORED if kind == "lexical" else _NAMED, order[order.index(kind) :]
    if parsed.kind not in allowed or parsed.reranks or any(getattr(parsed, one) for one in later):
        before = ", ".join(f"+{one}" for one in [*later[1:], "rerank"])
        raise ConfigError(f"one +{kind} behind {', '.join(allowed)}, before any {before}; not as in {name!r}")
    given: dict[str, Any] = {kind: weight}
    return replace(parsed, **given)


def _without_parentheses(text: str) -> str:
    """`text` without a pair of parentheses around all of it."""
    if text.startswith("(") and text.endswith(")") and _depths(text).index(0) == len(text) - 1:
        return text[1:-1].strip()
    return text


def _suffixed(text: str) -> list[str]:
    """The system's own name and its suffixes, those inside parentheses left alone."""
    depths = _depths(text)
    cuts = [m.start() for m in _SUFFIX.finditer(text) if depths[m.start()] == 0]
    starts, ends = [0, *(c + 1 for c in cuts)], [*cuts, len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def _split(text: str, separators: str) -> list[str]:
    """Parts of `text` between separators that are outside parentheses, without empty ones."""
    parts, depths = [""], _depths(text)
    for character, depth in zip(text, depths, strict=True):
        if character in separators and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _depths(text: str) -> list[int]:
    """How many parentheses are open after each character. Raises ConfigError where they do not match."""
    depths, depth = [], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        depths.append(depth)
        if depth < 0:
            break
    if depth != 0:
        raise ConfigError(f"parentheses do not match in {text!r}")
    return depths
