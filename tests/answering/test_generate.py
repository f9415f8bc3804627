"""Sampling, and text as it grows token by token."""

import random

import pytest
import torch

from facade import about, opened
from msa_plugin.answering.decoding import TextStream, TokenSampler, decode
from msa_plugin.answering.reading import Excerpt
from msa_plugin.config import GenerationConfig
from msa_plugin.prompts import question_part, reading_parts


def feed(backbone, text, stop=()):
    """Push a text byte by byte until it stops; returns the pieces, the flushed rest, and the stream."""
    stream = TextStream(backbone, stop)
    pieces = []
    for token in backbone.tokenize(text):
        pieces.append(stream.push(token))
        if stream.finish:
            break
    return pieces, stream.end("length"), stream


def test_a_character_appears_when_its_last_byte_has(backbone):
    pieces, rest, stream = feed(backbone, "a€😀é")
    assert pieces == ["a", "", "", "€", "", "", "", "😀", "", "é"]
    assert rest == "" and stream.text == "a€😀é" and stream.tokens == 10


@pytest.mark.parametrize("reason", ["length", "stop"])
@pytest.mark.parametrize("bytes_", [1, 2])
def test_a_character_that_never_ends_is_left_out(backbone, reason, bytes_):
    stream, sent = TextStream(backbone), ""
    for token in [*backbone.tokenize("ab "), *backbone.tokenize("€")[:bytes_]]:
        sent += stream.push(token)
    assert sent + stream.end(reason) == stream.text == "ab" and stream.finish == reason


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two", ("two",), "one"),
        ("one two", ("tw", "two"), "one"),
        ("abcabd", ("abd",), "abc"),
        ("aaab", ("aab",), "a"),
        ("xabcy", ("bcz", "cy"), "xab"),
        ("xabc", ("abcd",), "xabc"),
        ("price: 5€ now", ("€ n",), "price: 5"),
        ("stop", ("stop",), ""),
        ("one\n\ntwo", ("\n\n",), "one"),
        ("late and early", ("early", "late"), ""),
    ],
)
def test_text_ends_before_the_first_stop(backbone, text, stop, expected):
    pieces, rest, stream = feed(backbone, text, stop)
    assert "".join(pieces) + rest == stream.text == expected
    assert stream.finish == ("length" if text == expected else "stop")


def test_what_may_become_a_stop_is_held_back_until_it_is_decided(backbone):
    pieces, rest, _ = feed(backbone, "a<eb<en>", ("<end>",))
    assert (pieces, rest) == (["a", "", "", "<eb", "", "", "", "<en>"], "")
    pieces, rest, stream = feed(backbone, "a<en", ("<end>",))
    assert (pieces, rest) == (["a", "", "", ""], "<en") and stream.finish == "length"
    assert stream.end("stop") == "" and stream.finish == "length"


def test_outer_blanks_are_neither_sent_nor_kept(backbone):
    pieces, rest, stream = feed(backbone, " \n a  b \n")
    assert (pieces, rest) == (["", "", "", "a", "", "", "  b", "", ""], "")
    assert stream.text == "a  b"
    assert feed(backbone, "  \n")[2].text == ""


def test_pieces_are_final_whatever_the_bytes(backbone):
    draw = random.Random(5)
    byte_ids = backbone.tokenize("a <>\n") + backbone.tokenize("é😀€")
    for _ in range(300):
        stop = tuple("".join(draw.choices("a <>\né", k=draw.randint(1, 4))) for _ in range(draw.randint(0, 3)))
        stream, sent = TextStream(backbone, stop), ""
        ids = draw.choices(byte_ids, k=draw.randint(1, 24))
        for token in ids:
            sent += stream.push(token)
            assert stream.text.startswith(sent)
            if stream.finish:
                break
        whole = backbone.detokenize(ids[: stream.tokens])
        cuts = [whole.find(s) for s in stop if s in whole]
        assert bool(stream.finish) == bool(cuts)
        kept = whole[: min(cuts)] if cuts else whole.rstrip("\ufffd")
        assert sent + stream.end("length") == stream.text == kept.strip()


def test_greedy_takes_the_largest(backbone):
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert TokenSampler(GenerationConfig(), 2).pick(logits) == [1, 0]


def test_a_tiny_temperature_is_greedy():
    logits = torch.tensor([[-80.0, 3.0, 2.9], [5.0, -float("inf"), 1.0]], dtype=torch.bfloat16)
    for temperature in (1e-3, 1e-30, 5e-324):
        assert TokenSampler(GenerationConfig(temperature=temperature, seed=1), 2).pick(logits) == [1, 0]


def test_a_nucleus_keeps_at_least_the_likeliest():
    logits = torch.tensor([[1.0, 1.1, 0.9]]).repeat(1, 50)
    picks = {TokenSampler(GenerationConfig(temperature=1.0, top_p=1e-9, seed=s), 1).pick(logits)[0] for s in range(20)}
    assert len(picks) == 1 and picks.pop() % 3 == 1


def test_a_nucleus_keeps_the_tokens_that_reach_its_mass():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    sampler = TokenSampler(GenerationConfig(temperature=1.0, top_p=0.7, seed=0), 1)
    picks = [sampler.pick(logits)[0] for _ in range(400)]
    assert set(picks) == {0, 1}
    assert 0.5 < picks.count(0) / 400 < 0.75  # 0.5 of 0.8


def test_sampling_follows_the_probabilities():
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    sampler = TokenSampler(GenerationConfig(temperature=1.0, seed=0), 1)
    picks = [sampler.pick(logits)[0] for _ in range(2000)]
    assert [picks.count(i) / 2000 for i in range(3)] == pytest.approx([0.7, 0.2, 0.1], abs=0.05)


def test_a_seed_repeats_itself_and_rows_do_not_disturb_each_other():
    config = GenerationConfig(temperature=1.0, seed=11)
    steps = torch.randn(6, 3, 40, generator=torch.Generator().manual_seed(0))
    batch, again = (
        [sampler.pick(logits) for logits in steps] for sampler in (TokenSampler(config, 3), TokenSampler(config, 3))
    )
    assert batch == again
    for row in range(3):
        alone = TokenSampler(config, 1)
        assert [alone.pick(logits[row : row + 1])[0] for logits in steps] == [picks[row] for picks in batch]
    other = TokenSampler(GenerationConfig(temperature=1.0, seed=12), 3)
    assert [other.pick(logits) for logits in steps] != batch


def test_without_a_seed_runs_differ():
    logits = torch.zeros(1, 10_000)
    config = GenerationConfig(temperature=1.0)
    assert TokenSampler(config, 1).pick(logits) != TokenSampler(config, 1).pick(logits)


def test_decoding_is_the_stock_model_over_the_whole_text(tmp_path, backbone, monkeypatch):
    seen, pick = [], TokenSampler.pick
    monkeypatch.setattr(TokenSampler, "pick", lambda self, logits: seen.append(logits.clone()) or pick(self, logits))
    monkeypatch.setattr(type(backbone), "end_ids", frozenset())
    questions, found = ["the violin", "a much longer question about bees"], [about("violin"), about("beekeeping") * 3]
    with opened(tmp_path, backbone) as memory:
        reader = memory.engine.reader
        excerpts = [[Excerpt(0, text, 0, len(text))] for text in found]
        prefill = reader.prefill(questions, excerpts)
        streams = [TextStream(backbone) for _ in questions]
        config = GenerationConfig(max_new_tokens=10, temperature=1.5, seed=4)
        list(decode(backbone, prefill.state, prefill.logits, prefill.positions, streams, config))
        prompts = [
            reader.head_ids + backbone.tokenize(reading_parts([text])[0] + question_part(question)) + reader.tail_ids
            for question, text in zip(questions, found, strict=True)
        ]
    for row, prompt in enumerate(prompts):
        drawn = streams[row]._ids
        assert len(set(drawn)) > 3
        with torch.inference_mode():
            stock = backbone.model(torch.tensor([prompt + drawn])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(torch.stack([logits[row] for logits in seen]), stock, atol=2e-3, rtol=1e-3)
