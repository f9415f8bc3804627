"""Every string the model is shown, in one place: the chat frame, the reading prompt and the reference's wire format.

Documents and questions are data: only the frame around them is ever tokenised with special tokens enabled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

READER = (
    "Answer the question with a short phrase taken from the documents. "
    "If the documents do not contain the answer, say that you do not know."
)
CLOSED_BOOK = "Answer the question with a short phrase."
_SLOT = "MSA-CONTENT-9f2c1e"


@dataclass(frozen=True)
class Frame:
    """A chat turn around a user's message, as text that may contain special tokens: `head` + message + `tail`."""

    head: str
    tail: str


def chat_frame(tokenizer: Any, system: str) -> Frame:
    """The backbone's own chat template around a user message, up to where the assistant starts to speak.

    A tokenizer without a chat template gets a plain frame; one whose template refuses a system message gets the
    instruction at the start of the user's message.
    """
    if not getattr(tokenizer, "chat_template", None):
        return Frame(f"{system}\n\n", "\nAnswer:")
    user = {"role": "user", "content": _SLOT}
    try:
        text = _render(tokenizer, [{"role": "system", "content": system}, user])
        if system not in text:
            raise ValueError("the template dropped the system message")
    except Exception:  # a template raises whatever its author chose
        text = _render(tokenizer, [{"role": "user", "content": f"{system}\n\n{_SLOT}"}])
    head, _, tail = text.partition(_SLOT)
    return Frame(head, tail)


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def document_text(title: str, text: str) -> str:
    """A document as the backbone reads it, for encoding and in prompts alike."""
    return f"{title}\n{text}" if title else text


def reading_parts(documents: Sequence[str]) -> list[str]:
    """The documents' part of a prompt, one piece each, so that a caller can fit them to a budget."""
    return [f"Document {number}: {text}\n\n" for number, text in enumerate(documents, start=1)]


def question_part(question: str) -> str:
    """The question's part of a prompt."""
    return f"Question: {question}"


def follow_up(question: str, found: Sequence[str]) -> str:
    """The next round's routing text: the question with what was found so far (paper section 3.5)."""
    return "\n".join([question, *found])
