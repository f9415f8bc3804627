"""Bytes into text: which encoding a file is in, and what could not be decoded, counted and logged.

In this order: what the caller forces, a byte order mark, what the file declares, UTF-8 where the bytes are UTF-8, and
last what charset-normalizer makes of them.
"""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from encodings.aliases import aliases
from typing import IO, Literal

from charset_normalizer import from_bytes

from msa_plugin.errors import IngestError

EncodingErrors = Literal["replace", "strict"]

_LOG = logging.getLogger("msa_plugin.ingest")
_BLOCK = 1 << 20
_MAX_LINE = 1 << 26
_SAMPLE = 1 << 16  # bytes that an encoding is guessed from
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What is guessed among. Rare ones would win over common ones in short texts; `encoding=` takes any that Python knows.
_WIDE = ["utf_16_le", "utf_16_be", "utf_32_le", "utf_32_be"]
_COMMON = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874"),
    *("iso8859_2", "iso8859_5", "iso8859_7", "koi8_r", "koi8_u", "cp866"),
    *("cp932", "euc_jp", "gb18030", "big5", "cp949"),
]
# Labels that mean a larger encoding than Python's codec of that name, as in browsers.
_LARGER = {
    **dict.fromkeys(("iso8859-1", "ascii"), "cp1252"),
    **dict.fromkeys(("gb2312", "gbk", "hz"), "gb18030"),
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}
_BARE = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}  # of files without a mark
_NO_TEXT = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}
_ODD_CONTROLS = re.compile(rb"[\x00-\x07\x0e-\x1a\x1c-\x1f]")
_LINE_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_SURROGATES = re.compile("[\ud800-\udfff]")


class NotTextError(IngestError):
    """The bytes are no text in any encoding."""


def check_encoding(name: str) -> str:
    """Python's name of an encoding of text. Raises IngestError for any other name."""
    if found := _codec(name):
        return found
    likely = sorted(alias for alias in {*aliases, *aliases.values()} if _codec(alias))
    near = get_close_matches(name.lower().replace("-", "_"), likely, 1)
    hint = f"did you mean {near[0].replace('_', '-')!r}?" if near else "use for example utf-8, cp1252 or utf-16"
    raise IngestError(f"no encoding of text is called {name!r}; {hint}")


def _codec(name: str) -> str:
    """Python's name of an encoding of text, or ""."""
    with suppress(LookupError, ValueError):
        found = codecs.lookup(name).name
        with suppress(UnicodeError):
            b"a".decode(found)  # a LookupError for codecs that make no text, such as base64
        return "" if found in _NO_TEXT else found
    return ""


def declared(label: str) -> str:
    """The encoding that a page means by `label`; "" for one that is unknown or that browsers ignore."""
    found = _codec(label)
    if found.startswith(("utf-16", "utf-32")):
        return "utf-8"  # the declaration was read as ASCII, so it is neither
    return _LARGER.get(found, found)


class Decoder:
    """Decodes one file in blocks and cleans its text; counts what had to be changed, and logs it at the end."""

    def __init__(
        self,
        source: str,
        errors: EncodingErrors,
        encoding: str | None = None,
        declares: Callable[[bytes], str] | None = None,
    ) -> None:
        """`source` names the file in messages; under `errors="strict"` bad bytes raise IngestError.

        `encoding` is forced. `declares` reads the encoding that the file's beginning names, or "".
        """
        self.source, self.errors, self._declares = source, errors, declares
        self._forced = "utf-8" if encoding == "utf-8-sig" else encoding
        self.encoding, self.replaced, self.first, self.controls = "utf-8", 0, 0, 0
        self.guessed = False
        self._sure = False  # False while another encoding may still turn out to be the right one
        self._fed = 0  # bytes given to the codec so far, marks included

    def blocks(self, stream: IO[bytes]) -> Iterator[str]:
        """Text of `stream`, block by block. Raises NotTextError, before the first, for what is not text."""
        data = stream.read(_BLOCK)
        mark = self._choose(data)
        self._fed, data = len(mark), data[len(mark) :]
        while data:
            more = stream.read(_BLOCK)
            yield self._decode(data, final=not more)
            data = more

    def lines(self, stream: IO[bytes]) -> Iterator[tuple[int, str]]:
        """Numbered lines of `stream`; only a newline ends one, as JSON strings may hold the other line breaks."""
        number, rest = 0, ""
        for block in self.blocks(stream):
            *whole, rest = (rest + block).split("\n")
            for line in whole:
                number += 1
                yield number, line
            if len(rest) > _MAX_LINE:
                raise IngestError(f"{self.source}, line {number + 1} is over {_MAX_LINE} characters; use shorter lines")
        if rest:
            yield number + 1, rest

    def _choose(self, data: bytes) -> bytes:
        """Choose the encoding to begin with; returns the byte order mark."""
        mark, marked = next((bom for bom in _BOMS if data.startswith(bom[0])), (b"", ""))
        self._sure = bool(self._forced or marked)
        if self._forced:
            same = marked.startswith(self._forced)  # as utf-16 does not say which of the two
            self._use(marked if same and marked else _BARE.get(self._forced, self._forced))
            return mark if same else b""
        if marked:
            self._use(marked)
            return mark
        self._use((self._declares(data) if self._declares else "") or _without_declaration(data, self.source))
        self._sure = self.encoding in _WIDE
        self.guessed = self._sure
        return b""

    def _use(self, encoding: str) -> None:
        self.encoding = encoding
        self._codec = codecs.getincrementaldecoder(encoding)("strict")

    def _decode(self, data: bytes, final: bool) -> str:
        before = self._codec.getstate()
        try:
            text = self._codec.decode(data, final)
        except UnicodeDecodeError as error:
            waiting = before[0]
            if not self._sure and (other := self._better(waiting + data, error, final)):
                self.guessed, self._sure = other != "utf-8", True
                self._use(other)
                self._fed -= len(waiting)
                return self._decode(waiting + data, final)
            at = self._fed - len(waiting) + error.start
            text = self._replaced(data, final, before, at)
        self._sure = self._sure or not text.isascii()
        self._fed += len(data)
        return text

    def _better(self, data: bytes, error: UnicodeDecodeError, final: bool) -> str:
        """Another encoding for data that the present one, which nobody vouches for, fails at; "" for none."""
        if self.encoding != "utf-8":  # what a page declared, wrongly
            try:
                data.decode("utf-8")
                return "utf-8"
            except UnicodeDecodeError:
                return ""
        if final and error.end == len(data) and error.end - error.start > 1:
            return ""  # UTF-8 cut off inside its last character
        sound = data.decode("utf-8", "ignore")
        bad = data.decode("utf-8", "replace").count("\ufffd") - sound.count("\ufffd")
        good = sum(len(c.encode()) for c in sound if not c.isascii())
        # Two bytes of another encoding pass for a character of UTF-8 now and then; mostly right is UTF-8 with errors.
        return "" if 2 * good >= 3 * bad else guessed(data) or "cp1252"

    def _replaced(self, data: bytes, final: bool, before: tuple[bytes, int], at: int) -> str:
        if self.errors == "strict":
            raise IngestError(
                f"{self.source} is not valid {self.encoding} at byte {at}; convert it, or read with 'replace'"
            )
        self.first = self.first if self.replaced else at
        texts = []
        for errors in ("ignore", "replace"):
            self._codec.setstate(before)
            self._codec.errors = errors
            texts.append(self._codec.decode(data, final))
        self._codec.errors = "strict"
        self.replaced += texts[1].count("\ufffd") - texts[0].count("\ufffd")
        return texts[1]

    def clean(self, text: str) -> str:
        """Line breaks as newlines, without control characters and lone surrogates."""
        text, controls = _CONTROLS.subn("", _LINE_BREAKS.sub("\n", text))
        text, surrogates = _SURROGATES.subn("\ufffd", text)
        self.controls += controls + surrogates
        return text

    def log(self) -> None:
        """Say what had to be guessed or changed, if anything."""
        if self.guessed:
            _LOG.info("%s: read as %s, which is a guess", self.source, self.encoding)
        if self.replaced:
            message = "%s: not valid %s at byte %d; %d characters of the file were replaced with U+FFFD"
            _LOG.warning(message, self.source, self.encoding, self.first, self.replaced)
        if self.controls:
            _LOG.warning("%s: %d control characters or lone surrogates were taken out", self.source, self.controls)


def _without_declaration(data: bytes, source: str) -> str:
    """UTF-8, or UTF-16 and UTF-32 without a mark. Raises NotTextError for bytes that are no text."""
    sample = data[:_SAMPLE]
    odd = len(_ODD_CONTROLS.findall(sample))
    # Every other byte of most texts in UTF-16 is such a control.
    if 8 * odd >= len(sample) > 1 and (wide := _guess(sample[: len(sample) // 4 * 4] or sample, _WIDE)):
        return wide
    if len(sample) > 16 and 10 * odd > 3 * len(sample):
        raise NotTextError(f"{source} is not text; convert it to text, Markdown, HTML or PDF")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        high = sum(byte > 127 for byte in sample)
        if (20 * odd > len(sample) or 10 * high > 3 * len(sample)) and odd and not guessed(sample):
            raise NotTextError(f"{source} is not text; convert it to text, Markdown, HTML or PDF") from None
    return "utf-8"


def guessed(data: bytes) -> str:
    """The encoding that bytes are most likely in, when they are not UTF-8; "" when none makes text of them."""
    lines = (line for line in data.split(b"\n") if not line.isascii())
    sample = b""
    for line in lines:
        sample += line[:_SAMPLE] + b"\n"
        if len(sample) >= _SAMPLE:
            break
    return _guess(sample, _COMMON) or _guess(data[:_SAMPLE], _WIDE[:2])


def _guess(sample: bytes, among: list[str]) -> str:
    found = list(from_bytes(sample, cp_isolation=among))
    if not found:
        return ""
    best = found[0]
    for match in found:  # the most common encoding, where it explains the bytes as well as any other
        as_good = match.chaos <= best.chaos + 0.01 and match.coherence >= best.coherence - 0.01
        if as_good and "cp1252" in (match.encoding, *match.could_be_from_charset):
            return "cp1252"
    return best.encoding
