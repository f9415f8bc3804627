"""What the model is shown holds nothing that could be mistaken for a document of the user's."""

from pathlib import Path

import pytest

from msa_plugin import prompts
from tiny import tiny_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("make", [prompts.chat_frame, prompts.reader_frame])
def test_frames_hold_an_instruction_and_no_example(make):
    for template in (tiny_tokenizer().chat_template, None):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = template
        frame = make(tokenizer)
        assert "Document:" not in frame.head and "Question:" not in frame.head
        assert frame.head.count("user") <= 1


def test_examples_of_baselines_are_no_examples_of_the_docs():
    """A benchmark's own prompt may show examples; none of their words stands where users copy questions from."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = " ".join(page.read_text(encoding="utf-8") for page in pages)
    for found, asked, query in prompts.NEXT_QUERY_EXAMPLES:
        assert found not in text and asked not in text and (query == "none" or query not in text)


def test_a_passage_is_shown_with_its_title_and_heading():
    assert prompts.passage_text("Mill", "", "Text.") == prompts.document_text("Mill", "Text.") == "Mill\nText."
    assert prompts.passage_text("Mill", "History", "Text.") == "Mill > History\nText."
    assert prompts.passage_text("", "History", "Text.") == "History\nText."
    assert prompts.passage_text("", "", "Text.") == "Text."
