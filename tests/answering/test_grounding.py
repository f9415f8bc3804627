"""Where an answer's words stand: in whatever case, order and spelling, and nowhere but where they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_plugin.answering.grounding import is_judgement, quotes

TEXT = (
    "The Kestrel Mill stands by the Orm. It was built on 12 March 1821 by Anna Veld, who paid 1,200 crowns. "
    "Dr. A. Brand and Otto Keel owned it later. It has seven floors! Anna Veld is buried in Orm."
)
QUESTION = "Who built the Kestrel Mill?"
BUILT = "It was built on 12 March 1821 by Anna Veld, who paid 1,200 crowns."


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("Anna Veld", "Anna Veld"),
        ("the “ANNA VÉLD”.", "Anna Veld"),
        ("March 12, 1821", "12 March 1821"),
        ("12th of march 1821", "12 March 1821"),
        ("on 1821-03-12", "12 March 1821"),
        ("Mar 1821", "12 March 1821"),
        ("in 1821", "12 March 1821"),
        ("1200 crowns", "1,200 crowns"),
        ("7 floors", "seven floors"),
        ("Anna Veld built the Kestrel Mill", "Anna Veld"),
        ("The mill was built by Anna Veld in 1821", "12 March 1821 by Anna Veld"),
    ],
)
def test_an_answer_is_found_however_it_is_written(answer, words):
    [quote] = quotes(answer, QUESTION, TEXT)
    assert quote.text == words == TEXT[quote.start : quote.end]
    assert quote.text in quote.sentence and quote.sentence in TEXT


def test_the_place_is_the_one_whose_sentence_says_most_of_the_question():
    assert quotes("Anna Veld", QUESTION, TEXT)[0].sentence == BUILT
    assert quotes("Anna Veld", "Who is buried in Orm?", TEXT)[0].sentence == "Anna Veld is buried in Orm."


def test_a_list_is_quoted_place_by_place_and_only_whole():
    found = quotes("Otto Keel, Anna Veld", QUESTION, TEXT, offset=100)
    assert [q.text for q in found] == ["Anna Veld", "Otto Keel"]
    assert all(TEXT[q.start - 100 : q.end - 100] == q.text for q in found)
    assert found[1].sentence == "Dr. A. Brand and Otto Keel owned it later."
    assert quotes("Otto Keel and Peter Orm", QUESTION, TEXT) == ()


@pytest.mark.parametrize("answer", ["Peter", "1822", "13 March 1821", "the", "", "?!", "Veld Anna Brand", "an", "kest"])
def test_what_no_text_says_is_found_nowhere(answer):
    assert quotes(answer, QUESTION, TEXT) == ()


def test_months_are_dates_only_where_they_stand_in_one():
    assert quotes("1821-05-01", "When?", "It may 1 day rain.") == ()
    assert quotes("May 1, 1821", "When?", "Opened on May 1, 1821.")[0].text == "May 1, 1821"
    assert quotes("March", "When?", "They march on.")[0].text == "march"


def test_text_without_spaces_is_read_by_characters():
    text = "風車は一八二一年に建てられた。今は博物館である。"
    [quote] = quotes("博物館", "今は何ですか", text)
    assert (quote.text, quote.sentence) == ("博物館", "今は博物館である。")


def test_code_and_names_of_languages():
    [quote] = quotes("C++", "Which language?", "Written in C first. Ported to C++ later.")
    assert quote.sentence == "Ported to C++ later."
    assert quotes("`timeout=10`", "How?", "Set timeout = 10 first.")[0].text == "timeout = 10"


@pytest.mark.parametrize(
    ("answer", "judges"),
    [("Yes", True), ("no.", True), ("Yes, it was.", True), ("No Country for Old Men", False), ("Noah", False), ("", 0)],
)
def test_yes_and_no_are_judgements(answer, judges):
    assert is_judgement(answer) == judges


@pytest.mark.slow
@given(text=st.text(max_size=200), answer=st.text(max_size=30), data=st.data())
def test_any_text_is_read_and_every_quote_is_in_it(text, answer, data):
    part = data.draw(st.sampled_from([answer, text[len(text) // 3 : len(text) // 2]]))
    for quote in quotes(part, "what?", text):
        assert text[quote.start : quote.end] == quote.text != ""
        assert quote.sentence in text


@pytest.mark.slow
def test_long_texts_take_no_long_time():
    text = "word " * 200_000 + "1" * 10_000 + " the end. " + "a.\n\n" * 50_000
    assert quotes("the end", "what?", text)[0].text == "end"
    assert quotes("nothing a end", "what?", text) == ()
