"""Every string the model is shown, in one place: the chat frame and the reading prompt.

Documents and questions are data: only the frame around them is ever tokenised with special tokens enabled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

READER = "You answer questions with a short phrase copied from the documents."
# For a backbone that was trained to read: what it is asked for, and what it says when the documents do not tell.
ABSENT = "Not in the documents."
UNKNOWN = "The memory does not say."  # what users read instead
TRAINED_READER = (
    "Answer the question in a few words, copied from the documents. If they do not hold the answer, say: " + ABSENT
)
# Repeated with every question, where a small model still remembers it.
BRIEFLY = "Now answer in at most five words, copied from the documents."
_SLOT, _SAID = "MSA-CONTENT-9f2c1e", "MSA-SAID-51d0a7"


@dataclass(frozen=True)
class Frame:
    """A chat turn around a user's message, as text that may contain special tokens: `head` + message + `tail`.

    Characters `said` of the head are an instruction of the caller's: content, in which there are none.
    """

    head: str
    tail: str
    said: tuple[int, int] = (0, 0)

    @property
    def pieces(self) -> list[tuple[str, bool]]:
        """The head in order, each piece with whether it is frame (may hold special tokens) or content."""
        start, stop = self.said
        parts = ((self.head[:start], True), (self.head[start:stop], False), (self.head[stop:], True))
        return [part for part in parts if part[0]]


def reader_frame(tokenizer: Any) -> Frame:
    """The frame of a backbone that was trained to read: it needs no examples."""
    return _chat_frame(tokenizer, TRAINED_READER)


def chat_frame(tokenizer: Any, instruction: str | None = None) -> Frame:
    """The backbone's own chat template around a user's message, up to where the assistant starts to speak.

    Without an `instruction` of the caller's it asks for short answers. It shows no examples: a small model answers
    with their words where the documents say nothing. A tokenizer without a chat template gets a plain frame; one whose
    template refuses a system message gets the instruction at the start of the message.
    """
    return _said(_chat_frame(tokenizer, READER if instruction is None else _SAID), instruction or "")


def _chat_frame(tokenizer: Any, system: str) -> Frame:
    if not getattr(tokenizer, "chat_template", None):
        return Frame(f"{system}\n\n", "\nAnswer:")
    try:
        text = _render(tokenizer, [_says("system", system), _says("user", _SLOT)])
        if system not in text:
            raise ValueError("the template dropped the system message")
    except Exception:  # a template raises whatever its author chose
        text = _render(tokenizer, [_says("user", f"{system}\n\n{_SLOT}")])
    head, _, tail = text.partition(_SLOT)
    return Frame(head, tail)


def _said(frame: Frame, instruction: str) -> Frame:
    """Put the caller's instruction where the template put its slot."""
    start = frame.head.find(_SAID)
    if start < 0:
        return frame
    head = frame.head[:start] + instruction + frame.head[start + len(_SAID) :]
    return Frame(head, frame.tail, (start, start + len(instruction)))


def conversation(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
    """A conversation as pieces of text, in order, each with whether it is frame (may hold special tokens) or content.

    It ends where the assistant starts to speak. A template that refuses or drops system messages gets their text at
    the start of the next message. Raises ValueError with the template's own words when it refuses the rest.
    """
    if not getattr(tokenizer, "chat_template", None):
        turns = [p for m in messages for p in ((f"{m['role']}: ", True), (m["content"], False), ("\n", True))]
        return [*turns, ("assistant:", True)]
    try:
        return _slotted(tokenizer, messages)
    except Exception as error:  # a template raises whatever its author chose
        merged = _without_system(messages)
        if merged == list(messages):
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        try:
            return _slotted(tokenizer, merged)
        except Exception as second:
            raise ValueError(f"the chat template refuses these messages: {second}") from second


def _slotted(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
    slots = [f"{_SLOT}-{index}-" for index in range(len(messages))]
    rest = _render(tokenizer, [_says(m["role"], slot) for m, slot in zip(messages, slots, strict=True)])
    pieces = []
    for message, slot in zip(messages, slots, strict=True):
        frame, found, rest = rest.partition(slot)
        if not found:
            raise ValueError("the template dropped a message")
        pieces += [(frame, True), (message["content"], False)]
    return [*pieces, (rest, True)]


def _without_system(messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    merged: list[Mapping[str, str]] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        else:
            merged.append(_says(message["role"], "\n\n".join([*waiting, message["content"]])))
            waiting = []
    return [*merged, *(_says("user", text) for text in waiting)]


def _says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def document_text(title: str, text: str) -> str:
    """A document as the backbone reads it, for encoding and in prompts alike."""
    return f"{title}\n{text}" if title else text


def passage_text(title: str, heading: str, text: str) -> str:
    """A passage as it stands in a prompt; without a heading it is what `document_text` makes of it."""
    parts = (title, heading) if heading.casefold() != title.casefold() else (title,)
    return document_text(" > ".join(part for part in parts if part), text)


def reading_parts(documents: Sequence[str]) -> list[str]:
    """The documents' part of a prompt, one piece each, so that a caller can fit them to a budget."""
    return [f"Document: {text}\n\n" for text in documents]


def question_part(question: str, *, briefly: bool = False) -> str:
    """The question's part of a prompt; `briefly` asks for a short answer."""
    return f"Question: {question}\n{BRIEFLY}" if briefly else f"Question: {question}"


REPEAT = "Repeat this document word for word:"


def repeat_part(title: str) -> str:
    """Asks for a whole document by its title, as training does so that latents are read closely."""
    return f"{REPEAT} {title}"


# The reference's text level (golden spec 3.1, 4.1, 6.1); a model trained on it knows no other words.
TURN_START, TURN_END, LIST_END = "<|im_start|>", "<|im_end|>", "<|object_ref_end|>"
LIST_END_ELSE = "<file_sep>"  # for tokenizers without the reference's marker
RETRIEVED = "<End-of-Retrieve>"
TEMPLATE_HEAD, TEMPLATE_TAIL = f"{TURN_START}user\n", f"{TURN_END}\n"
ASKING = "\nPlease answer the question based on the above historical document information\n\n"
REQUEST = "Please return all documents related to the question"
ANSWERING = "The answer to the question is:"


def numbered_head(number: int) -> str:
    """What a document's text follows."""
    return f"[{number}]."


def numbered_tail(number: int) -> str:
    """What follows a document's text."""
    return f"[{number}]"


def numbered(number: int, text: str) -> str:
    """A document with its number, as it is encoded between the turn's markers."""
    return f"{numbered_head(number)} {text}{numbered_tail(number)}"


def memory_question(question: str) -> str:
    """The question as the first round's user message, without the template around it."""
    return f"{ASKING}{question}\n{REQUEST}\n"


def inserted(numbers: Sequence[int], texts: Sequence[str]) -> str:
    """Documents fetched by number, as they are put into the transcript."""
    return "".join(f"{numbered_head(number)} {text}\n" for number, text in zip(numbers, texts, strict=True))


def question_again(question: str) -> str:
    """The question, repeated once retrieval is over, up to the marker that ends it."""
    return f"The user's question is: {question}\n"


def follow_up(question: str, found: str) -> str:
    """The next round's routing text: the question with a piece of what was found (paper section 3.5)."""
    return f"{question}\n{found}"


# What the benchmark's baselines ask the same backbone for.
QUESTION_OF = "Write a question that this document answers."
NEXT_QUERY = (
    "You plan searches. Read the documents that were found so far, then write the one short search query that would "
    "find what is still missing to answer the question. If nothing is missing, write: none"
)
NEXT_QUERY_EXAMPLES = (
    (
        "The song Low Tide was written by Per Ostrin.",
        "In which town did the writer of Low Tide grow up?",
        "Per Ostrin home town",
    ),
    ("Ferry line 4 leaves every twenty minutes.", "How often does ferry line 4 leave?", "none"),
)


def question_of() -> tuple[str, str]:
    """What a document stands between when the model is asked for a question that it answers."""
    return "Document: ", f"\n\n{QUESTION_OF}"


def next_query(question: str, documents: Sequence[str]) -> list[dict[str, str]]:
    """Messages that ask for the next search query, or for "none", after two examples."""
    messages = [_says("system", NEXT_QUERY)]
    for found, asked, query in NEXT_QUERY_EXAMPLES:
        messages += [_says("user", "".join(reading_parts([found])) + question_part(asked)), _says("assistant", query)]
    return [*messages, _says("user", "".join(reading_parts(documents)) + question_part(question))]


def says_absent(text: str, *, so_far: bool = False) -> bool:
    """Whether a reader's text begins with ABSENT, or may yet, `so_far`; what a small model adds to it means nothing."""
    said, absent = ("".join(c for c in one.casefold() if c.isalnum()) for one in (text, ABSENT))
    return said.startswith(absent) or (so_far and absent.startswith(said))
