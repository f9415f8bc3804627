"""The reference's text level, strings in and out: prompts, insertions, and what its outer loop does with a text.

Kept apart from the default loop because it is faithful, not good: it finds markers by searching text, so a document
that contains one is obeyed (golden spec 6 and 9.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msa_plugin import prompts
from msa_plugin.answering.per_layer import LayerRow
from msa_plugin.backbone.backbone import Backbone

AGAIN = "<regenerate>"
PADDING = "<|endoftext|>"
_ANCHOR = "\nPlease answer the question based"
_INFORMATION = "historical document information\n\n"
_NUMBER = re.compile(r"\[(\d+)\]")
_JUST_INSERTED = f"]{prompts.LIST_END}["


def request(backbone: Backbone, prompt: str) -> LayerRow:
    """Token ids of a question, or of a transcript to go on with, and who votes (golden spec 4.1 and 6.7)."""
    if not prompt.startswith(AGAIN):
        question = backbone.tokenize_frame(prompts.memory_question(prompt))
        frame = backbone.tokenize_frame(prompts.TEMPLATE_TAIL) + backbone.tokenize_frame(prompts.TURN_START)
        return LayerRow(question + frame, [True] * len(question) + [False] * len(frame))
    text = prompt.removeprefix(AGAIN)
    ids = backbone.tokenize_frame(text)
    votes = [False] * len(ids)
    for start, stop in _voting(text):
        first, last = (len(backbone.tokenize_frame(text[:at])) if at else 0 for at in (start, stop))
        votes[first:last] = [True] * (last - first)
    return LayerRow(ids, votes)


def _voting(text: str) -> list[tuple[int, int]]:
    """Characters that vote: the question, and the documents inserted last."""
    asked = text.find(prompts.REQUEST)
    spans = [(0, asked + len(prompts.REQUEST))] if asked >= 0 else []
    start = text.rfind(_JUST_INSERTED)
    if start >= 0:
        start += len(_JUST_INSERTED) - 1
        stop = text.find(prompts.LIST_END, start)
        spans.append((start, stop if stop >= 0 else len(text)))
    return spans


def insertion(written: str, texts: Mapping[int, str]) -> str:
    """What is put behind a round's numbers: the documents in ascending order, unknown numbers dropped (6.3)."""
    known = sorted({int(n) for n in _NUMBER.findall(written)} & set(texts))
    return prompts.inserted(known, [texts[n] for n in known]) + prompts.LIST_END


def question_again(transcript: str) -> str:
    """What is put behind the end-of-retrieval marker; the question is cut out of the row's own text (6.4)."""
    after = transcript.rpartition(_INFORMATION)[2]
    question = after.partition(prompts.REQUEST)[0].strip("\n")
    return prompts.TURN_START + prompts.question_again(question) + prompts.LIST_END


def following(transcript: str) -> str | None:
    """The next call's prompt, or None where the transcript is final (6.6)."""
    text = _trimmed(transcript)
    unfinished = text.endswith(prompts.LIST_END) and prompts.ANSWERING not in text
    return AGAIN + text if unfinished else None


def _trimmed(transcript: str) -> str:
    at = transcript.find(_ANCHOR)
    return transcript[max(at, 0) :].replace(PADDING, "")


def answer(transcript: str) -> str:
    """The final answer in a transcript (6.8); empty when the model never gave one."""
    after = _trimmed(transcript).partition(prompts.ANSWERING)[2]
    return after.partition(prompts.TURN_END)[0].strip()


def numbers(text: str) -> list[int]:
    """Numbers in brackets, in the order in which `text` has them, without repetitions."""
    return list(dict.fromkeys(int(n) for n in _NUMBER.findall(text)))
