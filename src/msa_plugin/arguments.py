"""What callers pass to the facade, checked and normalised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import index
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, get_args

from msa_plugin.backbone.adapter import AdapterConfig
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.config import GenerationConfig, InterleaveConfig, MemoryConfig, nearest
from msa_plugin.dates import Asof, Recency, When, asof, days_of
from msa_plugin.engine.setup import check_recency
from msa_plugin.errors import ConfigError, InvalidDocumentError, InvalidQueryError, MSAError, UnknownDocumentError
from msa_plugin.types import Document, Filter, Hit, Period, Source

By: TypeAlias = Literal["document", "passage"]
_Item = TypeVar("_Item")
_QUOTED = 80  # characters; a shorter text may well be quoted by a question


class Retrieval(TypedDict, total=False):
    """What `retrieve` takes besides questions and `k`."""

    filter: Filter | None
    at: When | None
    history: bool
    recency: Recency | None
    by: By
    min_relevance: float | None


_ROLES = ("system", "user", "assistant")


def id_list(ids: str | Sequence[str]) -> list[str]:
    """One id or several, as a list. Raises InvalidQueryError for anything that is not text."""
    if not isinstance(ids, Iterable):
        raise InvalidQueryError(f"ids are strings, not {ids!r}")
    wanted = [ids] if isinstance(ids, str) else list(ids)
    wrong = [i for i in wanted if not isinstance(i, str)]
    if wrong:
        raise InvalidQueryError(f"ids are strings, not {wrong[0]!r}")
    return wanted


def listed(name: str, values: Iterable[_Item], raises: Callable[[str], MSAError] = InvalidQueryError) -> list[_Item]:
    """The `values` of a parameter as a list. Raises an error for text, each character of which would count as one."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise raises(f"{name}= takes a list, not {type(values).__name__}; put a single one in brackets: [...]")
    return list(values)


def questions_of(question: object, check: Callable[[object], None]) -> list[str]:
    """The questions asked, each of them checked. Raises InvalidQueryError."""
    if not isinstance(question, Iterable):
        raise InvalidQueryError(f"a question is a string, not {type(question).__name__}")
    questions = [question] if isinstance(question, str) else list(question)
    for text in questions:
        check(text)
    return questions


def chosen_of(
    bank: BankHandle,
    namespace: str,
    questions: Sequence[str],
    documents: Sequence[Sequence[str]] | None,
    selection: Selected,
) -> list[list[int]] | None:
    """Ordinals of the ids chosen for each question, without repetitions; None for none chosen.

    Raises UnknownDocumentError.
    """
    if documents is None:
        return None
    if isinstance(documents, str) or len(documents) != len(questions):
        raise InvalidQueryError(f"documents= takes one list of ids for each of the {len(questions)} questions")
    rows = [list(dict.fromkeys(id_list(ids))) for ids in documents]
    known = {i: at.ordinal for i, at in bank.lookup({i for row in rows for i in row}, namespace).items()}
    admitted = selection.admits(known.values())
    refused = sorted({i for row in rows for i in row if known.get(i) not in admitted})
    if refused:
        raise UnknownDocumentError(
            f"cannot read {refused[:5]}: not in this memory, not admitted by the filter, or not valid as of that date"
        )
    return [[known[i] for i in row] for row in rows]


def one_of(bank: BankHandle, namespace: str, document: object, selection: Selected) -> int:
    """The ordinal of a document that a selection admits, by id or hit. Raises UnknownDocumentError."""
    if not isinstance(document, str | Hit):
        raise InvalidQueryError(f"a document is named by its id or a hit, not {document!r}")
    wanted, home = (document, namespace) if isinstance(document, str) else (document.id, document.namespace)
    known = bank.lookup([wanted], home).get(wanted)
    if known is None or known.ordinal not in selection.admits([known.ordinal]):
        raise UnknownDocumentError(f"no document {wanted!r} in this memory, or not one that the filter admits")
    return known.ordinal


def dated(documents: Iterable[Document], given: Mapping[str, Any]) -> list[Document]:
    """Documents with the `valid_from`, `valid_until` and `replaces` in `given`: one for all, or a list of one for each.

    Raises InvalidDocumentError for a list of another length. Whether they can be dates is seen when they are added.
    """
    found = list(documents)
    for name in Period._fields:
        value = given.get(name)
        if value is None:
            continue
        each = value if isinstance(value, list | tuple) else [value] * len(found)
        if len(each) != len(found):
            raise InvalidDocumentError(f"there are {len(each)} {name}= for {len(found)} documents; give one for each")
        absent = () if name == "replaces" else None
        changes: list[dict[str, Any]] = [{name: absent if one is None else one} for one in each]
        found = [replace(d, **change) for d, change in zip(found, changes, strict=True)]
    return found


def time_of(
    at: When | None, history: bool, recency: Recency | None, config: MemoryConfig, adapter: AdapterConfig
) -> Asof:
    """The time that a question is about, and whether newer documents rank higher.

    Raises as `asof` and `days_of`, and ConfigError where layers select for themselves.
    """
    half_life = config.recency if recency is None else days_of(recency)
    check_recency(half_life, adapter)
    return asof(at, history, half_life)


def count(k: int) -> int:
    """`k` as an int, of whatever integer type. Raises InvalidQueryError, also for k < 1."""
    try:
        number = int(index(k))
    except TypeError as error:
        raise InvalidQueryError(f"k must be a whole number, not {k!r}") from error
    if number < 1:
        raise InvalidQueryError(f"k must be at least 1, not {k!r}")
    return number


def by_passage(by: object) -> bool:
    """Whether hits are to be passages. Raises InvalidQueryError for what they cannot be."""
    if by not in get_args(By):
        raise InvalidQueryError(f"by is 'document' or 'passage', not {by!r}")
    return by == "passage"


def relevant(least: object, adapter: AdapterConfig) -> Callable[[Hit], bool]:
    """Which hits `min_relevance` admits, all of them where it is None.

    Raises InvalidQueryError, and ConfigError for an adapter that knows no relevance.
    """
    if least is None:
        return lambda _: True
    if isinstance(least, bool) or not isinstance(least, int | float) or not 0.0 <= least <= 1.0:
        raise InvalidQueryError(f"min_relevance is a number from 0 to 1, not {least!r}")
    if adapter.relevance is None:
        raise ConfigError(
            f"{adapter.name} was not fitted to know what is relevant; fit it with msa relevance, or leave "
            "min_relevance out"
        )
    return lambda hit: hit.relevance is not None and hit.relevance >= least


def check_messages(messages: object) -> list[Mapping[str, str]]:
    """The messages of a conversation. Raises InvalidQueryError for any that is not {"role", "content"} with text."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        raise InvalidQueryError('messages are a list of {"role": ..., "content": ...}')
    checked = list(messages)
    if not checked:
        raise InvalidQueryError("a conversation needs at least one message")
    for message in checked:
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise InvalidQueryError(f"a message is a mapping with a role of {', '.join(_ROLES)}, not {message!r}")
        content = message.get("content")
        if not isinstance(content, str):
            raise InvalidQueryError(f"a message's content is text, not {type(content).__name__}")
        try:
            content.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidQueryError(f"a message holds invalid Unicode at character {error.start}") from error
    return checked


def pasted(question: str, sources: Iterable[Source]) -> str | None:
    """The id of a source whose text, unless it is short, stands in the question itself."""
    for source in sources:
        text = source.text.removeprefix(f"{source.title}\n").strip()
        if len(text) >= _QUOTED and text in question:
            return source.id
    return None


def answer_settings(config: MemoryConfig, options: dict[str, Any]) -> tuple[GenerationConfig, InterleaveConfig]:
    """Apply per-call options to the settings they belong to. Raises ConfigError for unknown names."""
    rounds = {k: v for k, v in options.items() if k in InterleaveConfig.model_fields}
    rest = {k: v for k, v in options.items() if k not in rounds}
    if "max_rounds" in rounds:
        rounds.setdefault("generated_rounds", rounds["max_rounds"])
    generation = generation_settings(config, rest, also=tuple(InterleaveConfig.model_fields))
    return generation, InterleaveConfig(**{**config.interleave.model_dump(), **rounds})


def generation_settings(config: MemoryConfig, options: dict[str, Any], also: Sequence[str] = ()) -> GenerationConfig:
    """Apply per-call options to the generation settings. Raises ConfigError; `also` are other names worth a mention."""
    unknown = sorted(set(options) - set(GenerationConfig.model_fields))
    if unknown:
        known = sorted([*GenerationConfig.model_fields, *also])
        hint = nearest(unknown[0], known)
        raise ConfigError(f"unknown options {unknown}{hint}; known: {', '.join(known)}")
    return GenerationConfig(**{**config.generation.model_dump(), **options})
