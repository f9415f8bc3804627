"""When things are valid. Moments are text, ISO 8601 in UTC, which sorts as it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from typing import NamedTuple, TypeAlias

from msa_plugin.errors import InvalidDocumentError, InvalidQueryError, MSAError

When: TypeAlias = datetime | date | str
"""A datetime, a date (its first moment), or either as ISO 8601 text. Without a zone it is read as UTC."""

Recency: TypeAlias = timedelta | float
"""The age at which what a document gains by being new has halved: a timedelta, or days."""


class Period(NamedTuple):
    """When a document is valid, ISO 8601 in UTC (None: without a bound), and the ids of those it replaces."""

    valid_from: str | None = None
    valid_until: str | None = None
    replaces: tuple[str, ...] = ()


ALWAYS = Period()


class Validity(NamedTuple):
    """When a stored document is found, ISO 8601 in UTC, None without a bound; `replaced_by` is what ends it, an id."""

    valid_from: str | None = None
    valid_until: str | None = None
    replaced_by: str | None = None


UNBOUNDED = Validity()


class Asof(NamedTuple):
    """Of which time documents are: `at` (None: the present), or with `history` of any.

    With a `half_life` (days) newer ones rank higher among them; see `retrieval.recency`.
    """

    at: str | None = None
    history: bool = False
    half_life: float | None = None


PRESENT = Asof()


def clock() -> str:
    """The present, as `instant` writes it."""
    return datetime.now(timezone.utc).isoformat()


def instant(value: object, name: str, raises: Callable[[str], MSAError]) -> str:
    """A `When` as ISO 8601 text in UTC; what `raises` makes, for anything else, says which parameter it was."""
    try:
        return _moment(value).astimezone(timezone.utc).isoformat()
    except (ValueError, TypeError, OverflowError) as error:
        raise raises(
            f"{name}= takes a datetime, a date or ISO 8601 text such as '2026-03-01' or '2026-03-01T10:00+01:00' "
            f"(without a zone: UTC), not {value!r:.80}"
        ) from error


def period_of(name: str, valid_from: object, valid_until: object, replaces: object) -> Period:
    """The period of document `name`. Raises InvalidDocumentError for what is no date and no id."""
    if valid_from is None and valid_until is None and not replaces:
        return ALWAYS

    def invalid(reason: str) -> InvalidDocumentError:
        return InvalidDocumentError(f"document {name!r}: {reason}")

    start = None if valid_from is None else instant(valid_from, "valid_from", invalid)
    end = None if valid_until is None else instant(valid_until, "valid_until", invalid)
    if start is not None and end is not None and end <= start:
        raise invalid(f"valid_until ({end}) must be later than valid_from ({start})")
    given: object = [replaces] if isinstance(replaces, str) else replaces
    if not isinstance(given, Sequence) or not all(isinstance(i, str) and i and _is_unicode(i) for i in given):
        raise invalid(f"replaces= takes an id or a list of ids, not {replaces!r:.80}")
    if name in given:
        raise invalid("it cannot replace itself; give the new version an id of its own, or use update()")
    return Period(start, end, tuple(dict.fromkeys(given)))


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def asof(at: When | None, history: bool, half_life: float | None = None) -> Asof:
    """The time that a question is about. Raises InvalidQueryError for what is no date, and for both at once."""
    if not isinstance(history, bool):
        raise InvalidQueryError(f"history is True or False, not {history!r}")
    if at is None:
        return Asof(None, history, half_life)
    if history:
        raise InvalidQueryError("at= asks as of a date and history=True of all times; give one of them")
    return Asof(instant(at, "at", InvalidQueryError), half_life=half_life)


def days_of(recency: Recency | None) -> float | None:
    """A half-life in days; None and 0 are none. Raises InvalidQueryError for what is no length of time."""
    days = recency / timedelta(days=1) if isinstance(recency, timedelta) else recency
    if days is None:
        return None
    if isinstance(days, bool) or not isinstance(days, int | float) or not 0.0 <= days < float("inf"):
        raise InvalidQueryError(
            f"recency= is the age at which a document's gain has halved, a timedelta or days (0: off), not {recency!r}"
        )
    return float(days) or None


def said_at(metadata: Mapping[str, object]) -> str | None:
    """When a turn was said (ISO 8601 in UTC), of a document that is one (see `conversations`)."""
    try:
        return instant(metadata["at"], "at", InvalidDocumentError) if "said" in metadata else None
    except (KeyError, InvalidDocumentError):  # somebody else's field
        return None


def _moment(value: object) -> datetime:
    if isinstance(value, str):
        text = value.strip()
        value = datetime.fromisoformat(f"{text[:-1]}+00:00" if text[-1:] in ("Z", "z") else text)  # 3.10 knows no Z
    if isinstance(value, datetime):
        return value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=timezone.utc)
    raise TypeError(f"{type(value).__name__} is no moment")
