"""Training to answer: its rows are what a memory computes, what they hold, and what is learnt opens and answers."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from chains import answering, corpus, moved
from reading_modes import answer_logits

from msa_plugin import prompts
from msa_plugin.answering.reading import Excerpt
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.errors import ConfigError, FingerprintMismatchError, TrainingError
from msa_plugin.memory import LatentMemory
from msa_plugin.training.data import Corpus
from msa_plugin.training.dressing import CutPassage, dressed
from msa_plugin.training.identifiers import coded
from msa_plugin.training.reader_objective import ReaderConfig, ReaderObjective
from msa_plugin.training.reader_rows import ReaderRow, RowBuilder, RowConfig, cut
from msa_plugin.training.recipes import load_recipe
from msa_plugin.training.settings import TrainConfig
from msa_plugin.training.trainer import Trainer
from tiny import tiny_adapter, tiny_backbone, tiny_lora, with_lora

SETTINGS = {"rank": 3, "rows": 2, "held_out": 1, "evaluate_rows": 4, "layers": (1, 2, 3)}
TEXT = "The mill was built in 1821. Anna Veld paid for it. It burned down once. Nobody was hurt. It has four wings."


@pytest.fixture
def backbone():
    return tiny_backbone(max_position_embeddings=4096)


def objective(backbone, data, start=None, **settings):
    start = start or with_lora(tiny_adapter(backbone), tiny_lora(backbone.model, layers=(0,)))
    return ReaderObjective(backbone, ReaderConfig(**{**SETTINGS, **settings}), [data], seed=1, adapter=start)


@pytest.mark.parametrize("reading", ["text", "kv"])
def test_rows_are_what_a_memory_computes(tmp_path, backbone, data, reading):
    made = moved(objective(backbone, data, kv=0.5))
    names = ("m1", "p1")
    texts = tuple(prompts.document_text(data.documents[n].title, data.documents[n].text) for n in names)
    row = made.tokens(ReaderRow(texts, "Where was Bo born?", "Lisse"))
    with torch.no_grad():
        logits, _ = (made.read if reading == "text" else made.read_stored)([row])
    with LatentMemory.open(tmp_path / "bank", model=backbone, adapter=made.adapter({}), reading=reading) as memory:
        memory.add(list(data.documents.values()))
        assert {"answer", "read_kv"} <= set(memory.ask("Where was Bo born?", max_new_tokens=1).trace.abilities)
        known = memory.engine.bank.lookup(list(names), memory.namespace)
        excerpts = [
            Excerpt(known[n].ordinal, t, 0, len(backbone.tokenize(t))) for n, t in zip(names, texts, strict=True)
        ]
        prefill = memory.engine.reader.prefill(["Where was Bo born?"], [excerpts])
        assert torch.allclose(logits, answer_logits(backbone, prefill, row.said), atol=2e-4)


def test_a_batch_reads_each_row_as_if_alone(backbone, data):
    made = moved(objective(backbone, data, kv=0.5))
    rows = made._rows(0)
    with torch.no_grad():
        for read in (made.read, made.read_stored):
            alone = torch.cat([read([row])[0] for row in rows])
            assert torch.allclose(read(rows)[0], alone, atol=2e-4)


def test_stored_rows_train_towards_reading_text(backbone, data):
    made = moved(objective(backbone, data, kv=0.999))
    losses = made.losses(0)
    assert set(losses.parts) == {"answer_kv", "apart"}
    losses.total.backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in made.parameters.values())


def test_banks_with_stored_kv_belong_to_their_reader(tmp_path, backbone, data):
    made = moved(objective(backbone, data, kv=0.5))
    with LatentMemory.open(tmp_path / "bank", model=backbone, adapter=made.adapter({}), reading="kv") as memory:
        memory.add(["some text"])
    for settings in ({"reader": "stock"}, {"adapter": made.start}):
        with pytest.raises(FingerprintMismatchError, match="content"):
            LatentMemory.open(
                tmp_path / "bank", **{"model": backbone, "adapter": made.adapter({}), "reading": "kv", **settings}
            )


def test_who_answers(tmp_path, backbone, data):
    """The reader answers questions; the stock model everything else, and where it is asked for."""
    made = moved(objective(backbone, data))
    adapter, start = made.adapter({}), made.start
    said, question, chat = {}, "Where was Bo born?", [{"role": "user", "content": "hello"}]
    cases = {
        "stock": (start, {}),
        "reader": (adapter, {}),
        "off": (adapter, {"reader": "stock"}),
        "told": (adapter, {"instruction": "Answer."}),
        "told stock": (start, {"instruction": "Answer."}),
    }
    for name, (given, settings) in cases.items():  # one bank for all: nothing that it keeps depends on the reader
        with LatentMemory.open(tmp_path / "bank", model=backbone, adapter=given, **settings) as memory:
            memory.add(list(data.documents.values()))
            said[name] = memory.ask(question, max_new_tokens=12).text
            assert memory.engine.reader.trained == (name == "reader")
            chatted = memory.chat(chat, max_new_tokens=12).text
            assert said.setdefault("chat", chatted) == chatted
    assert said["stock"] == said["off"] != said["reader"]
    assert said["told"] == said["told stock"]


def test_rows_hold_the_answer_or_say_that_it_is_absent(data):
    builder = RowBuilder([data], RowConfig(absent=0.4, coded=0, words=(3, 20)))
    draw, step, kinds = random.Random(5), answering(data), Counter()
    for _ in range(200):
        row = builder.row(data, step, draw)
        read = " ".join(row.passages)
        assert row.absent == (step.answer not in read)
        assert row.answer in (prompts.ABSENT, step.answer)
        kinds[row.absent] += 1
    assert 50 < kinds[True] < 110


def test_every_set_has_its_share(data):
    other = corpus(4, "other")
    steps = [(c, s) for c in (data, other) for s in c.steps if s.answer]
    rows = RowBuilder([data, other], RowConfig(mix={"other": 1.0}, dressed=0, absent=0, coded=0))
    asked = {s.question for s in other.steps}
    assert all(row.question in asked or row.question + "?" in {q.lower() for q in asked} for row in
               rows.drawn(steps, 50, random.Random(1)))  # fmt: skip
    with pytest.raises(TrainingError, match="none of island, other"):
        RowBuilder([data, other], RowConfig(mix={"absent": 1.0})).drawn(steps, 1, random.Random(1))


def test_claims_become_questions(data):
    claims = Corpus("claims", data.documents, tuple(_claim(s, "REFUTES") for s in data.steps if s.answer))
    row = RowBuilder([claims], RowConfig(absent=0)).row(claims, claims.steps[0], random.Random(2))
    assert row.answer == "no" and claims.steps[0].question in row.question


def _claim(step, verdict):
    return replace(step, question="A mill was built by Ann.", answer=verdict)


@pytest.mark.parametrize("seed", range(30))
def test_cut_keeps_the_sentence_with_the_answer(seed):
    draw = random.Random(seed)
    found = cut(TEXT, 8, "Anna Veld", draw)
    assert "Anna Veld" in found and found in TEXT and len(found.split()) < len(TEXT.split())
    assert cut(TEXT, 500, "Anna Veld", draw) == TEXT
    table = " ".join(f"row{i} value{i}" for i in range(300))
    found = cut(table, 40, "value150", draw)
    assert "value150" in found and len(found.split()) <= 80


@pytest.mark.parametrize("seed", range(40))
def test_dressing_keeps_the_answer(seed):
    passages = [CutPassage("Mill", "", TEXT), CutPassage("", "", "Other words.")]
    found = dressed(passages, "Anna Veld", random.Random(seed))
    assert "Anna Veld" in " ".join(found[0].text.split()) and len(found) == 2


@pytest.mark.parametrize("seed", range(40))
def test_coded_rows_ask_for_a_name_that_stands_in_the_passage(seed):
    passages = [CutPassage("Mill", "", TEXT), CutPassage("", "", "Bo Stone and Cy Orm met in 1911.")]
    found, name = coded(passages, "Who paid for the mill?", "Anna Veld", random.Random(seed))
    assert name in found[0].text and "Anna Veld" not in found[0].text and len(found) == 2
    assert [p.title for p in found] == ["Mill", ""]


def test_what_cannot_be_coded_is_left_as_it_is():
    passages = [CutPassage("Anna Veld", "", TEXT)]
    draw = random.Random(0)
    assert coded(passages, "Who paid?", "Anna Veld", draw) is None  # the title would tell
    assert coded([CutPassage("", "", TEXT)], "What did Anna Veld do?", "Anna Veld", draw) is None
    assert coded([CutPassage("", "", TEXT)], "Who?", "Nobody Else", draw) is None


def test_micro_batches_are_functions_of_seed_and_number(backbone, data):
    made, again = objective(backbone, data), objective(backbone, data)
    first = [made._rows(n) for n in range(20)]
    assert [again._rows(n) for n in reversed(range(20))][::-1] == first


def test_gradients_reach_the_reader_alone(backbone, data):
    made = moved(objective(backbone, data))
    made.losses(0).total.backward()
    assert {name.split(".")[1] for name in made.parameters} == {"1", "2", "3"}
    assert all(value.grad is not None and bool(value.grad.any()) for value in made.parameters.values())
    assert all(weight.grad is None for weight in backbone.model.parameters())


@pytest.mark.slow
def test_what_it_learns_opens_and_goes_on(tmp_path, backbone, data):
    made = objective(backbone, data)
    assert set(made.evaluate()) >= {"f1", "em"}
    before = [float(made.losses(n).total.detach()) for n in range(6)]
    Trainer(made, TrainConfig(steps=30, lr=1e-2, checkpoint_every=100), tmp_path / "out").run()
    after = [float(made.losses(n).total.detach()) for n in range(6)]
    assert sum(after) < 0.8 * sum(before)
    adapter = Adapter.load(tmp_path / "out" / "adapter")
    assert adapter.config.abilities.answer and adapter.config.format_version == 3
    assert adapter.hash() == made.start.hash()
    assert adapter.config.provenance["router"]["measured"] == dict(made.start.config.measured)
    on = objective(backbone, data, adapter)
    assert torch.allclose(on.lora.updates[1, "mlp.up_proj"].up, adapter.reader.updates[1, "mlp.up_proj"].up.float())
    assert on.adapter({}).config.provenance["router"] == adapter.config.provenance["router"]


def test_what_it_refuses(backbone, data):
    with pytest.raises(ConfigError, match="no layer 9"):
        objective(backbone, data, layers=(2, 9))
    with pytest.raises(TrainingError, match="no question with an answer"):
        objective(backbone, Corpus("bare", data.documents, tuple(s for s in data.steps if not s.answer)))
    step = answering(data)
    few = Corpus("few", {k: v for k, v in data.documents.items() if k != step.found[0]}, data.steps)
    with pytest.raises(TrainingError, match="which its corpus lacks"):
        objective(backbone, data).rows.row(few, step, random.Random(0))
    for wrong in ({"words": (5, 2)}, {"others": (0.0,)}, {"mix": {}}):
        with pytest.raises(ConfigError):
            RowConfig(**wrong)


def test_the_recipe_trains_any_backbone(backbone):
    planned = load_recipe("cpu-reader").plan()
    assert [p.settings.rank for p in planned] and planned[0].settings.layers[-1] == 29
    assert ReaderConfig().layers is None
    start = tiny_adapter(backbone)
    assert ReaderObjective(backbone, ReaderConfig(rank=2, held_out=1), [corpus()], adapter=start).lora.deepest == 3
