"""Every error that the package raises on purpose, each with a message that says what to do.

All derive from `MSAError`; those that a caller may already catch as a built-in (`ValueError`,
`LookupError`, `ImportError`, `OSError`) derive from it too.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class MSAError(Exception):
    """Base class of every error raised by this package."""

    def __str__(self) -> str:
        """The message, as text that any log can hold: it may name what came from a file, lone surrogates and all."""
        return super().__str__().encode("utf-8", "backslashreplace").decode()


class ConfigError(MSAError, ValueError):
    """A setting is out of range, unknown, or contradicts another one."""


class InvalidDocumentError(MSAError, ValueError):
    """A document cannot be stored: empty, not text, or with metadata that JSON cannot hold."""


class IngestError(MSAError, ValueError):
    """A file cannot be read into documents: missing, of an unknown type, damaged; the message names file and line."""


class DuplicateDocumentError(MSAError, ValueError):
    """One call gave the same id to two different texts."""


class DiskError(MSAError, OSError):
    """The operating system refused a file outside a bank: the cache, an adapter, a report; the message names it."""


class UnknownDocumentError(MSAError, LookupError):
    """A change was asked of a document that the memory does not hold."""


class InvalidQueryError(MSAError, ValueError):
    """A question, a filter or a `k` that cannot be answered."""


class EmptyMemoryError(MSAError, LookupError):
    """An answer was asked of a memory (or of a filter) that holds no document."""


class BusyError(MSAError, TimeoutError):
    """Other questions kept the model busy for longer than `queue_timeout`."""


class ToolsUnsupportedError(MSAError, NotImplementedError):
    """Tool calls or structured output were asked of a backbone that was not trained for them."""


class MissingExtraError(MSAError, ImportError):
    """An optional package is needed; the message names the extra to install."""


def optional_module(name: str, message: str) -> Any:
    """The module `name`. Raises MissingExtraError with `message`, which names the extra."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(message) from error


class BackboneError(MSAError):
    """Base class of errors about the language model."""


class BackboneNotFoundError(BackboneError, LookupError):
    """No backbone could be found or read under the given name."""


class UnsupportedBackboneError(BackboneError, ValueError):
    """The model's family or one of its features is not supported."""


class AdapterError(MSAError, ValueError):
    """An adapter file is malformed, or was made for another backbone."""


class CheckpointError(MSAError, ValueError):
    """A checkpoint in the reference's format is malformed; the message names the field."""


class TrainingError(MSAError):
    """Training cannot go on: a sample teaches nothing, or a loss is no number; the message names the batch."""


class BankError(MSAError):
    """Base class of errors about the memory bank on disk."""


class BankNotFoundError(BankError, LookupError):
    """The folder holds no memory bank and creating one was not asked for."""


class BankMovedError(BankError):
    """The folder is no longer the bank that was opened there: it was replaced, moved or removed."""


class BankFormatError(BankError, ValueError):
    """The bank was written in a format version that this package does not read."""


class FingerprintMismatchError(BankError, ValueError):
    """The bank was built with another model, tokenizer, adapter or pooling; the message says which differ."""


class BankCorruptError(BankError):
    """A file of the bank is missing, truncated or altered; the message names it."""


class BankLockedError(BankError):
    """Another process is writing to the bank."""


class BankReadOnlyError(BankError, PermissionError):
    """A change was asked of a bank that was opened for reading, or that lies in an unwritable folder."""


class BankWriteError(BankError, OSError):
    """The operating system refused a write (disk full, input/output error); nothing acknowledged was lost."""


class ClusterError(MSAError):
    """A cluster of shards cannot be used: wrong number of shards, a plain bank, no place to run them."""


class ShardLostError(ClusterError):
    """A shard's process is gone and could not be started again; what was acknowledged is in its folder."""


class SnapshotError(BankError, ValueError):
    """A snapshot name is unknown, taken, or not a valid name."""
