"""Where a text that grows has begun to repeat itself, as a model does that has lost its thread.

A repetition is a block that comes again right behind itself, letter by letter: twice more at least, and `least` bytes
of it in all (of UTF-8: where a letter says much, fewer of them are needed). Lists, tables, code and dotted lines repeat
themselves rightly: a block with a line break must come four times more, with twice as many bytes, and one without a
letter must have four times as many. In a text that was cut off anyway, half as many repeats will do.
"""

from __future__ import annotations

import re

_REACH = 1000  # characters; a block that is longer is not looked for
_LATIN, _WIDE, _CLOSING = ".!?\u2026", "\u3002\uff01\uff1f", "[\"')\\]\u201d\u2019]*"
_SENTENCE = re.compile(rf"[{_LATIN}]{_CLOSING}(?=\s|$)|[{_WIDE}]|\n")
_ENDED = re.compile(rf"(?:[{_LATIN}{_WIDE}]{_CLOSING}|\n)\s*$")


class Repetition:
    """Watches a text for repetitions; `least` 0 finds none."""

    def __init__(self, least: int) -> None:
        """No text yet."""
        self.least = least
        self._text = ""
        self._places: dict[str, list[int]] = {}  # of each character
        self._runs: dict[int, int] = {}  # at a distance, how many last characters are those that far before

    def push(self, text: str) -> None:
        """Take the whole text as it is now."""
        if not self.least:
            return
        if not text.startswith(self._text):  # a tokenizer may decode a token's neighbours anew
            self._text, self._places, self._runs = "", {}, {}
        for place in range(len(self._text), len(text)):
            before = self._places.setdefault(text[place], [])
            runs = {}
            for earlier in reversed(before):
                distance = place - earlier
                if distance > _REACH:
                    break
                runs[distance] = self._runs.get(distance, 0) + 1
            self._runs = runs
            before.append(place)
        self._text = text

    @property
    def suspect(self) -> int:
        """How many of the last characters may yet turn out to repeat what is before them."""
        return max(self._runs.values(), default=0)

    def found(self, *, cut_off: bool = False) -> int | None:
        """How many characters to keep of a text that repeats itself, else None; `cut_off` says that none will follow.

        The block's first coming is kept, to the end of its sentence or word; never less than was not `suspect`.
        """
        for distance, run in sorted(self._runs.items()):
            if run * 4 >= self.least and self._repeats(distance, run, cut_off):
                return self._end_of_first(distance, len(self._text) - run)
        return None

    def _repeats(self, distance: int, run: int, cut_off: bool) -> bool:
        block, times, least = self._text[-distance:], 1 if cut_off else 2, self.least
        if not any(character.isalpha() for character in block):
            least *= 4
        elif "\n" in block:
            times, least = 2 * times, 2 * least
        return run >= times * distance and run * len(block.encode()) >= least * distance

    def _end_of_first(self, distance: int, end: int) -> int:
        """From where the repetition begins on, the next end of a sentence, else of a word, within one block."""
        if _ENDED.search(self._text, max(0, end - 16), end):
            return end
        sentence = _SENTENCE.search(self._text, end, end + distance)
        if sentence is not None:
            return sentence.end()
        word = end
        while 0 < word < end + distance and self._text[word - 1].isalnum() and self._text[word].isalnum():
            word += 1
        return word
