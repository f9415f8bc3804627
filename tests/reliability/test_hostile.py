"""Text never becomes a control token, on any way into the model, whatever it says."""

from collections import Counter

import pytest
from hostile_text import ALL, MARKERS
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from facade import opened
from msa_plugin import prompts
from msa_plugin.answering.generative.prompt_codec import PromptCodec, Transcript
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.encoding.numbering import Numbering
from reference_checkpoint import LIST_END, marker_tokenizer
from tiny import SPECIAL, tiny_adapter, tiny_backbone, tiny_model

FEW = settings(max_examples=60)
texts = st.lists(st.one_of(st.sampled_from(ALL), st.text(max_size=8)), max_size=6).map("".join).filter(str.strip)
EXTRA = {"<think>": False, "</think>": False, "<|eot_id|>": True, "</s>": True, "<tool_call>": False}


@pytest.fixture(scope="module")
def marked():
    """A tokenizer as real ones are: with markers that are not special, and special ones that have no role."""
    tokenizer = marker_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=special) for text, special in EXTRA.items()])
    tokenizer.chat_template += "{# <think> </think> <tool_call> #}"
    return Backbone(tiny_model("qwen3", vocab_size=512), tokenizer, "marked")


def control(backbone):
    """Ids of everything that is a token of its own besides the plain alphabet."""
    return set(backbone.tokenizer.added_tokens_decoder)


@FEW
@given(text=texts)
def test_no_text_has_a_control_token_and_none_is_lost(marked, text):
    ids = marked.tokenize(text)
    assert not control(marked) & set(ids)
    assert marked.detokenize(ids) == text


def test_our_own_frame_has_them(marked):
    for marker in (*EXTRA, *SPECIAL, LIST_END):
        assert len(marked.tokenize_frame(marker)) == 1
        assert len(marked.tokenize(marker)) == len(marker)


def controls(backbone, ids):
    return Counter(i for i in ids if i in control(backbone))


@FEW
@given(system=texts, user=texts, reply=texts)
def test_a_conversation_has_those_of_its_template(marked, system, user, reply):
    def ids(*contents):
        roles = ("system", "user", "assistant", "user")
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        return marked.tokenize_pieces(prompts.conversation(marked.tokenizer, messages))

    assert controls(marked, ids(system, user, reply, user)) == controls(marked, ids("a", "b", "c", "d"))


@FEW
@given(instruction=texts)
def test_an_instruction_is_content(marked, instruction):
    frame = prompts.chat_frame(marked.tokenizer, instruction)
    assert instruction in frame.head
    plain = prompts.chat_frame(marked.tokenizer, "Be brief.")
    found = [controls(marked, marked.tokenize_pieces(f.pieces)) for f in (frame, plain)]
    assert found[0] == found[1]


def test_our_own_instruction_is_tokenised_as_before(marked):
    frame = prompts.chat_frame(marked.tokenizer)
    assert marked.tokenize_pieces(frame.pieces) == marked.tokenize_frame(frame.head)


@FEW
@given(question=texts, document=texts)
def test_a_transcript_has_those_of_the_wire(marked, question, document):
    def ids(asked, read):
        transcript = Transcript(PromptCodec(marked), asked)
        transcript.add({3: read, 1: read})
        return transcript.row(answering=True).ids

    assert controls(marked, ids(question, document)) == controls(marked, ids("why", "because"))


@FEW
@given(document=texts, window=st.sampled_from((24, 2048)))
def test_a_numbered_document_stands_between_its_own_markers(marked, document, window):
    numbering = Numbering(marked, None)
    for ids in numbering.windows(document, 5, window)[0]:
        assert (ids[0], ids[-1]) == (numbering.start, numbering.end)
        assert not controls(marked, ids[1:-1])


def test_no_written_number_is_a_control_token(marked):
    assert not control(marked) & set(PromptCodec(marked).numbers.tokens)


@pytest.mark.parametrize("mode", ["text", "kv", "latent"])
def test_everything_the_model_is_fed(tmp_path, monkeypatch, mode):
    """Titles, texts, ids, metadata, namespace and question at once: no more control tokens than with plain words."""
    backbone = tiny_backbone()
    run, fed = Backbone.run, []

    def spy(self, state, ids, mask, *args, **kwargs):
        fed.extend(i for row, keep in zip(ids, mask, strict=True) for i in row[keep].tolist())
        return run(self, state, ids, mask, *args, **kwargs)

    def asked(name, what):
        fed.clear()
        with opened(tmp_path / name, backbone, tiny_adapter(backbone), reading=mode, namespace=f"n{what}") as memory:
            memory.add([{"id": f"{n}{what}", "text": f"glass {what}", "title": what} for n in range(2)])
            memory.ask(f"glass? {what}", max_new_tokens=1, max_rounds=1)
            memory.chat([{"role": "user", "content": what}], max_new_tokens=1)
        return controls(backbone, fed)

    monkeypatch.setattr(Backbone, "run", spy)
    assert asked("hostile", "".join(MARKERS)) == asked("plain", "words")
