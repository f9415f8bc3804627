"""PDF into text, by pypdf; what that has to say about a file becomes a sentence of ours."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from msa_plugin.errors import IngestError, MissingExtraError

_LOG = logging.getLogger("msa_plugin.ingest")
_PYPDF = logging.getLogger("pypdf")


def pdf_pages(stream: IO[bytes], source: str) -> list[str]:
    """The text of every page. Raises IngestError, and MissingExtraError where a package is missing."""
    with _quiet() as complaints, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pypdf and cryptography: about their own interfaces and old ciphers
        try:
            import pypdf
            from pypdf.errors import DependencyError
        except ImportError as error:
            raise MissingExtraError(f"{source} is a PDF, which needs pypdf; pip install 'msa-plugin[pdf]'") from error
        try:
            reader = pypdf.PdfReader(stream)
            locked = reader.is_encrypted and not reader.decrypt("")
            pages = [] if locked else [page.extract_text() for page in reader.pages]
        except DependencyError as error:
            raise MissingExtraError(
                f"{source} is an encrypted PDF, which needs cryptography; pip install 'msa-plugin[pdf]'"
            ) from error
        except Exception as error:  # a damaged file makes pypdf raise almost anything
            raise IngestError(f"{source} cannot be read as PDF ({error}); print it to a new PDF") from error
    if locked:
        raise IngestError(f"{source} is encrypted; save a copy without the password (qpdf --decrypt)")
    if complaints:
        message = "%s: the PDF is not quite in order (%s%s); what could be read of it was taken"
        more = f", and {len(complaints) - 1} more" if len(complaints) > 1 else ""
        _LOG.warning(message, source, complaints[0], more)
    return pages


class _Collector(logging.Handler):
    """Keeps what pypdf logs on this thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread and (message := record.getMessage().strip(" .")) not in self.messages:
            self.messages.append(message)


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Collect pypdf's log messages instead of letting them through."""
    collector = _Collector()
    propagates = _PYPDF.propagate
    _PYPDF.addHandler(collector)
    _PYPDF.propagate = False
    try:
        yield collector.messages
    finally:
        _PYPDF.removeHandler(collector)
        _PYPDF.propagate = propagates
