"""Text that repeats itself: where it is cut, what is never cut, and that nothing was sent that is cut."""

import random

import pytest

from facade import opened, topics
from msa_plugin.answering.decoding import TextStream, TokenSampler
from msa_plugin.config import GenerationConfig
from msa_plugin.errors import ConfigError

DEFAULT = GenerationConfig().repetition
MILL = "Anna Veld built the Kestrel Mill in 1821."


def written(backbone, text, least=DEFAULT, reason="length"):
    """What a stream makes of a text that comes byte by byte: its text and why it ended; pieces add up to it."""
    stream, sent = TextStream(backbone, (), least), ""
    for token in backbone.tokenize(text):
        sent += stream.push(token)
        if stream.finish:
            break
    sent += stream.end(reason)
    assert sent == stream.text
    return stream.text, stream.finish


@pytest.mark.parametrize(
    ("loop", "kept"),
    [
        ((MILL + " ") * 9, MILL),
        ("It is old. " + (MILL + " ") * 9, "It is old. " + MILL),
        ("He eats beetles." + " The beetles." * 30, "He eats beetles. The beetles."),
        ("lather " + "gather " * 30, "lather gather"),
        ("the mill " * 30, "the mill"),
        ("beetles, " * 30, "beetles"),
        ("ha" * 90, "haha"),
        ("- the old mill by the river\n" * 30, "- the old mill by the river"),
        ("Die Mühle steht am Fluß und sie ist schön. " * 9, "Die Mühle steht am Fluß und sie ist schön."),
        ("磨坊建于1821年。" * 20, "磨坊建于1821年。"),
        ("磨坊" * 40, "磨坊磨坊"),
        ("😀 ja " * 40, "😀 ja"),
        ("-" * 700, "-"),
        ("0, " * 250, "0"),
        ("So: " + "".join(f"{MILL} {n} years later it burned down. " for n in [7] * 9),
         f"So: {MILL} 7 years later it burned down."),
    ],
)  # fmt: skip
def test_a_loop_is_left_and_cut_off(backbone, loop, kept):
    assert written(backbone, loop) == (kept, "repetition")
    assert written(backbone, loop, 0) == (loop.strip(), "length"), "it can be turned off"


ROWS = "".join(f"| {year} | none | none |\n" for year in range(1821, 1845))
TABLE = "| year | rain | snow |\n|------|------|------|\n" + ROWS
CODE = "def fill(row):\n" + "".join(f"    row[{i}] = 0\n" for i in range(20)) + "    return row\n"


@pytest.mark.parametrize(
    "text",
    [
        "no, no, no, no, no, no!",
        "No, no. It was very, very, very, very old, ha ha ha ha ha.",
        "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
        f"{MILL} {MILL} So I said.",
        TABLE,
        "| a | b | c | d | e | f | g | h | i | j |\n|---|---|---|---|---|---|---|---|---|---|\n| 1 | 2 |",
        "| NA | NA | NA | NA | NA | NA | NA | NA |\n" * 4 + "| 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 |",
        CODE,
        "x = [" + "0, " * 64 + "0]",
        "    print(line)\n    print(line)\n    print(line)\n    print(other)\n",
        '[{"a": 0, "b": 0},\n {"a": 0, "b": 0},\n {"a": 0, "b": 0},\n {"a": 1, "b": 0}]',
        "".join(f"- mill number {n}\n" for n in range(40)),
        "\n".join(f"{n}. {word}" for n, word in enumerate(["yes", "no"] * 20)),
        "Contents" + "." * 120 + " 3\nIndex" + "." * 120 + " 9",
        "=" * 80 + "\nTITLE\n" + "=" * 80,
        "ABAB ABAB CDCD CDCD, as in ACGTACGTACGTACGTACGTACGTAC.",
        "1000000000000000000000000000000000000000000000000000000000000000",
    ],
)
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_what_repeats_itself_rightly_is_not_cut(backbone, text, reason):
    assert written(backbone, text, reason=reason) == (text.strip(), reason)


def test_where_length_ends_a_text_half_as_many_repeats_will_do(backbone):
    long = "The mill by the river was built in 1821 by a woman whose name was Anna Veld, and she was born in Lisse."
    assert len(long) > 100
    text = f"Yes. {long} {long} The mill by"
    assert written(backbone, text) == (f"Yes. {long}", "repetition")
    assert written(backbone, text, reason="stop") == (text, "stop"), "the model ended it, so it was no loop"


def test_text_flows_although_words_recur(backbone):
    text = "The mill was old. The miller was old too, and the mill was his. Nobody knew how old the mill was."
    stream, sent, behind = TextStream(backbone, (), DEFAULT), "", 0
    for at, token in enumerate(backbone.tokenize(text), 1):
        sent += stream.push(token)
        behind = max(behind, len(text[:at].strip()) - len(sent))
    assert 0 < behind <= len(" the mill was "), "at most the words that recur are held back"


def test_pieces_are_final_whatever_repeats(backbone):
    draw = random.Random(3)
    ended = set()
    for _ in range(100):
        words = draw.choices(["ab", "a", "b.", "c\n", "é", "- ", " "], k=draw.randint(1, 4))
        text = "".join(draw.choices(["ab ", "c. ", "é"], k=3)) + "".join(words) * draw.randint(1, 40)
        ended.add(written(backbone, text, draw.choice([20, 60]))[1])
    assert ended == {"length", "repetition"}


def test_a_negative_number_is_refused():
    with pytest.raises(ConfigError):
        GenerationConfig(repetition=-1)


@pytest.fixture
def looping(monkeypatch, backbone):
    """A model that writes the same sentence for ever."""
    ids = backbone.tokenize(MILL + " ")
    steps = {}

    def pick(self, logits):
        step = steps[id(self)] = steps.get(id(self), -1) + 1
        return [ids[step % len(ids)]] * logits.shape[0]

    monkeypatch.setattr(TokenSampler, "pick", pick)
    return ids


@pytest.mark.slow
def test_answers_and_chats_end_where_they_repeat_themselves(tmp_path, backbone, looping):
    with opened(tmp_path, backbone) as memory:
        memory.add(topics())
        asked = memory.ask("violin", max_new_tokens=400)
        stream = memory.stream("violin", max_new_tokens=400)
        assert "".join(stream) == asked.text == MILL
        both = memory.ask(["violin", "glacier"], max_new_tokens=400)
        chat = memory.chat([{"role": "user", "content": "Tell me."}], max_new_tokens=400)
        for answer in (asked, stream.answer, *both, chat):
            assert (answer.text, answer.trace.finish) == (MILL, "repetition")
            assert answer.trace.new_tokens < 4 * len(looping), "and no more is decoded"
        free = memory.ask("violin", max_new_tokens=400, repetition=0)
        assert (free.trace.finish, free.trace.new_tokens) == ("length", 400) and free.text.count(MILL) == 9
