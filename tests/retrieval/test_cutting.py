"""Texts cut into passages: what every text must keep to, and where a reader would cut."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_plugin.retrieval.cutting import LARGEST, SMALLEST, TextSpan, cut

PARAGRAPH = "The mill stands by the river. It was built in 1821 by Anna Veld, who came from Holland. "
CHINESE = "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002\u6211\u4eec\u53bb\u6cb3\u8fb9\u6563\u6b65"


def spans(text, per_token=1, **sizes):
    """Cut with a token every `per_token` characters."""
    return cut(text, np.arange(0, len(text), per_token, dtype=np.int32), **sizes)


def texts(text, **sizes):
    """The passages' texts."""
    return [text[s.start : s.end] for s in spans(text, **sizes)]


pieces = st.sampled_from(
    ["word ", "A sentence. ", "\n", "\n\n", "# Top\n", "Title\n=====\n", "\u00e9\u3002", "    code()\n", "```\n", "x"]
)


@given(st.lists(pieces, max_size=120).map("".join), st.integers(1, 3))
def test_passages_are_in_order_within_bounds_and_lose_nothing_but_blanks_and_headings(text, per_token):
    found = spans(text, per_token, smallest=8, largest=24)
    if len(range(0, len(text), per_token)) <= 24:
        assert found == [TextSpan(0, len(text), 0, len(range(0, len(text), per_token)))]
        return
    at = 0
    for span in found:
        assert at <= span.start < span.end <= len(text)
        assert 0 < span.stop - span.first <= 24 + 1
        assert span.first * per_token <= span.start and span.end <= span.stop * per_token
        assert not text[span.start].isspace() and not text[span.end - 1].isspace()
        between = text[at : span.start]
        assert not between.strip() or span.heading
        at = span.end
    assert not text[at:].strip()


def test_a_short_text_is_one_passage_as_it_stands():
    text = "# Title\n\nOne line.  "
    assert spans(text) == [TextSpan(0, len(text), 0, len(text), "")]


@pytest.mark.parametrize(
    "heading",
    [
        "# Second part",
        "## Second part ##",
        "Second part\n===========",
        "Second part\n---",
        "=====\nSecond part\n=====",
        "Second part\n~~~~~~~~~~~",
    ],
)
def test_a_cut_falls_at_a_heading_which_is_told_apart_from_the_text(heading):
    body = PARAGRAPH * 2
    text = f"# First part\n\n{body}\n\n{heading}\n\n{body}"
    found = spans(text, largest=len(body) + 40)
    assert [(s.heading, text[s.start : s.end]) for s in found] == [
        ("First part", body.strip()),
        ("Second part", body.strip()),
    ]


def test_later_passages_of_a_section_have_its_heading():
    text = "# One\n\n" + "\n\n".join([PARAGRAPH * 2] * 3) + "\n\n## Two\n\n" + "\n\n".join([PARAGRAPH * 2] * 3)
    assert [s.heading for s in spans(text)] == ["One"] * 3 + ["Two"] * 3


def test_what_looks_like_a_heading_in_code_is_none():
    code = "```\n# not a heading\n" + "x = 1\n" * 40 + "```\n"
    assert {s.heading for s in spans("# Real\n\n" + code + PARAGRAPH * 3)} == {"Real"}


def test_short_lines_of_a_page_without_marks_are_headings():
    text = "\n".join(["Opening hours", PARAGRAPH * 2, "How to get there", PARAGRAPH * 2])
    assert list(dict.fromkeys(s.heading for s in spans(text))) == ["Opening hours", "How to get there"]
    marked = f"# Contents\n\n{text}"
    assert {s.heading for s in spans(marked)} == {"Contents"}


def test_without_headings_a_cut_falls_between_paragraphs_then_sentences():
    assert texts("\n\n".join([PARAGRAPH] * 4)) == [f"{PARAGRAPH}\n\n{PARAGRAPH}".strip()] * 2
    for passage in texts(PARAGRAPH * 30):
        assert passage.endswith(".") and passage.startswith(("The", "It"))


def test_an_abbreviation_and_a_number_of_a_list_end_no_sentence():
    text = "Mr. Veld and Dr. Orm met J. Smith, e.g. Friday. " * 30
    assert all(passage.endswith("Friday.") for passage in texts(text))


def test_a_script_without_spaces_is_cut_at_its_stops():
    assert all(passage.endswith("\u3002") for passage in texts((CHINESE + "\u3002") * 60)[:-1])


@pytest.mark.parametrize(
    "text", ["x" * 5000, "word " * 2000, CHINESE[-4:] * 900, "a,b;" * 1000, "\n" * 3000 + "x" * 500]
)
def test_an_endless_line_is_cut_somewhere(text):
    found = spans(text)
    assert all(s.stop - s.first <= LARGEST + 1 for s in found)
    assert all(s.stop - s.first >= SMALLEST - 1 for s in found if text.strip() == text)
    assert "".join(text[s.start : s.end] for s in found).replace(" ", "") == "".join(text.split())


def test_only_code_is_cut_between_lines():
    text = "".join(f"    value_{n} = compute({n})\n" for n in range(200))
    assert all(passage.endswith(")") for passage in texts(text))


def test_a_title_in_front_counts_no_characters():
    text = PARAGRAPH * 5
    starts = np.concatenate([np.array([-6, -3], dtype=np.int32), np.arange(0, len(text), 1, dtype=np.int32)])
    found = cut(text, starts)
    assert found[0].start == 0 and found[0].first == 2 and found[-1].stop == len(starts) - 1


def test_ten_megabytes_take_as_long_as_their_size():
    def seconds(text):
        starts = np.arange(0, len(text), 4, dtype=np.int32)
        began = time.process_time()
        cut(text, starts)
        return time.process_time() - began

    small = "".join(f"{PARAGRAPH}\nWhat it is\n" for _ in range(1000))
    seconds(small)
    assert seconds(small * 16) < 80 * seconds(small)
    assert seconds("x" * (16 * len(small))) < 80 * seconds(small)
