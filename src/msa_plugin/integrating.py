"""What integrations with frameworks need beside the facade: checked arguments, streams, exchanges, the clock.

With `msa_plugin`, `memory`, `types`, `config`, `events` and `errors` this is all of the core that they import, which an
import contract says.
"""

from __future__ import annotations

from datetime import datetime

from msa_plugin import dates
from msa_plugin.arguments import By, dated, id_list, listed, pasted
from msa_plugin.conversations import exchange
from msa_plugin.dates import When, asof
from msa_plugin.namespaces import Listed
from msa_plugin.streams import AnswerStream, AsyncAnswerStream

__all__ = [
    "AnswerStream",
    "AsyncAnswerStream",
    "By",
    "Listed",
    "When",
    "asof",
    "dated",
    "exchange",
    "id_list",
    "listed",
    "now",
    "pasted",
]


def now() -> datetime:
    """The moment that documents without dates are stored at, in UTC."""
    return datetime.fromisoformat(dates.clock())
