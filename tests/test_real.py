"""The default backbone with the adapter that is shipped for it, on the sample corpus."""

import json
import subprocess
import sys

import pytest
import torch
from reading_modes import answer_nll

from msa_plugin.answering.reading import Excerpt
from msa_plugin.backbone.attention import ForwardState
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.config import BesideConfig, InterleaveConfig
from msa_plugin.data import sample_documents, sample_questions
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.memory import LatentMemory
from msa_plugin.prompts import document_text

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("real") / "bank"


@pytest.fixture(scope="module")
def memory(path, real_backbone):
    with LatentMemory.open(path, model=real_backbone) as opened:
        opened.add(sample_documents())
        yield opened


@torch.no_grad()
def test_plugin_off_is_bit_identical(real_backbone, memory):
    ids = torch.tensor([real_backbone.tokenize("The lighthouse was first lit in 1811, long before the bridge.")])
    before = real_backbone.model(ids).logits
    memory.ask("Who built the lighthouse?", max_new_tokens=3)
    assert torch.equal(real_backbone.model(ids).logits, before)


def test_plugin_on_equals_the_stock_model_without_memory(real_backbone):
    single = Backbone.load(dtype="float32")
    ids = torch.tensor([single.tokenize("Penguins hold their eggs on their feet through the winter night.")])
    mask = torch.ones_like(ids).bool()
    ours = single.run(ForwardState(), ids, mask, torch.arange(ids.shape[1])[None], logits="all")
    with torch.no_grad():
        assert (ours - single.model(ids).logits).abs().max() < 1e-3


def test_the_shipped_adapter_belongs_to_the_default_backbone(real_backbone):
    adapter = find_adapter(real_backbone, None)
    assert adapter.config.abilities.route and not adapter.config.abilities.read_latent
    assert adapter.config.routing.key_groups == {"shared": 384}


def test_routing_finds_the_documents(memory):
    questions = sample_questions()
    hits = memory.retrieve([q.question for q in questions], 5)
    first = [row[0].id == q.positive_ids[0] for row, q in zip(hits, questions, strict=True)]
    # Measured: 12 of 12 (11 by routing keys alone). A random ranking of 42 documents would find none.
    assert sum(first) >= 11


def test_names_find_the_second_document_at_once(memory):
    questions = [q for q in sample_questions() if q.hops == 2]
    answers = memory.ask([q.question for q in questions], max_rounds=1, max_new_tokens=1)
    read = [{s.id for s in answer.sources} for answer in answers]
    assert sum(set(q.positive_ids) <= ids for q, ids in zip(questions, read, strict=True)) >= 4  # measured: 5 of 5


def test_by_keys_alone_a_second_round_finds_the_second_document(memory):
    questions = [q for q in sample_questions() if q.hops == 2]
    engine = memory.engine.variant(BesideConfig())
    selection = engine.bank.select("default", None)
    wide = {"per_round": 3, "cut": 0.6, "reads": 6}
    found = []
    for rounds in (1, 2):
        gathered = engine.gather(
            [q.question for q in questions], selection, InterleaveConfig(max_rounds=rounds, **wide)
        )
        read = [{d.id for d in one.stored.values()} for one in gathered]
        found.append(sum(set(q.positive_ids) <= ids for q, ids in zip(questions, read, strict=True)))
    assert found[1] > found[0]
    assert found[1] >= 4


def test_an_answer_with_its_source(memory):
    answer = memory.ask("Who calculated the position of Point Nemo?")
    assert "Lukatela" in answer.text
    assert answer.sources[0].id == "point-nemo"
    assert answer.trace.mode == "text"
    assert {"encode", "route", "gather", "prefill", "decode"} <= set(answer.trace.seconds)
    assert answer.trace.rounds[0].selected[0] == "point-nemo"


def test_a_batch_answers_like_one_at_a_time(memory):
    questions = [q.question for q in sample_questions()[:3]]
    together = memory.ask(questions, max_new_tokens=4)
    alone = [memory.ask(q, max_new_tokens=4) for q in questions]
    assert [[s.id for s in a.sources] for a in together] == [[s.id for s in a.sources] for a in alone]
    # bfloat16 sums in another order when rows are padded, so later tokens may part ways; the first word may not.
    assert [a.text.split()[0] for a in together] == [a.text.split()[0] for a in alone]


def test_reading_documents_helps_and_unpooled_latents_read_almost_as_well_as_text(tmp_path, real_backbone):
    """Mean negative log-likelihood of the right answer: closed book > kv > about text (figures in the README)."""
    questions = [q for q in sample_questions() if q.hops == 1]
    scores = {}
    for mode in ("text", "kv"):
        with LatentMemory.open(tmp_path / mode, model=real_backbone, reading=mode) as memory:
            memory.add(sample_documents())
            reader, bank = memory.engine.reader, memory.engine.bank
            for name, read in ((mode, True), ("closed", False)):
                total = 0.0
                for question in questions:
                    [document] = memory.get(question.positive_ids)
                    text = document_text(document.title, document.text)
                    ordinal = bank.lookup([document.id], "default")[document.id].ordinal
                    excerpt = Excerpt(ordinal, text, 0, len(real_backbone.tokenize(text)))
                    prefill = reader.prefill([question.question], [[excerpt] if read else []])
                    total += answer_nll(real_backbone, prefill, question.answers[0])
                scores[name] = total / len(questions)
    assert scores["text"] < scores["closed"] - 0.5
    assert scores["kv"] < scores["closed"] - 0.5


def test_everything_survives_a_restart(memory, path):
    question = "Who calculated the position of Point Nemo?"
    here = [(h.id, round(h.score, 3)) for h in memory.retrieve(question, 5)]
    code = (
        "import sys, json; from msa_plugin import LatentMemory\n"
        "memory = LatentMemory.open(sys.argv[1], read_only=True)\n"
        "print(json.dumps([(h.id, round(h.score, 3)) for h in memory.retrieve(sys.argv[2], 5)]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path), question], capture_output=True, text=True, check=True)
    assert [tuple(pair) for pair in json.loads(done.stdout.strip().splitlines()[-1])] == here


# Questions of README, docs and demo, asked of a memory that knows nothing of them, and what must not be said then.
ELSEWHERE = (
    ("Who built the Kestrel Mill?", "veld"),
    ("What does the blue-throated tinker eat?", "beetles"),
    ("In which year did the harbour trains stop running?", "1934"),
    ("Who wrote xxHash?", "veld"),
)


@pytest.mark.parametrize("reader", ["auto", "stock"])
def test_an_unrelated_memory_answers_with_no_words_of_a_prompt(tmp_path, real_backbone, reader):
    with LatentMemory.open(tmp_path / "bank", model=real_backbone, reader=reader) as memory:
        memory.add([{"id": "cats", "title": "Cats", "text": "Cats sleep for most of the day and hunt at dusk."}])
        for answer, (question, word) in zip(memory.ask([q for q, _ in ELSEWHERE]), ELSEWHERE, strict=True):
            assert word not in answer.text.lower(), question
