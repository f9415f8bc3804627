"""Samples in the words of inference, and the packed objective from its first loss to an adapter that answers."""

import random
from dataclasses import replace

import pytest
import torch
from chains import chains, corpus, packed_backbone

from msa_plugin import prompts
from msa_plugin.answering.generative.prompt_codec import PromptCodec, Transcript
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.checkpoint import load_reference
from msa_plugin.config import Abilities
from msa_plugin.errors import ConfigError, TrainingError
from msa_plugin.memory import LatentMemory
from msa_plugin.prompts import document_text
from msa_plugin.training.losses import IGNORED
from msa_plugin.training.packed_objective import PackedConfig, PackedObjective
from msa_plugin.training.recipe_run import export
from msa_plugin.training.samples import Batch, LexicalNegatives, Sampler
from msa_plugin.training.settings import TrainConfig
from msa_plugin.training.trainer import Trainer
from tiny import tiny_backbone, tiny_model, tiny_tokenizer

CONFIG = PackedConfig(
    pooling=8, top_k=3, id_width=3, memory_tokens=400, rows=2, hard=2, rank=3, window=96,
    abilities=Abilities(route=True, read_latent=True, emit_ids=True),
)  # fmt: skip


@pytest.fixture(scope="module")
def backbone():
    return packed_backbone()


def sampler(backbone, **changes):
    return Sampler(backbone, **{"top_k": 3, "width": 3, "memory_tokens": 400, "window": 96, **changes})


def steps(data, question="Where was the builder of mill 0 born?"):
    found = [s for s in data.steps if s.question == question]
    return sorted(found, key=lambda s: (bool(s.answer), len(s.found)))


def text(backbone, ids):
    return backbone.tokenizer.decode(ids, skip_special_tokens=False)


def documents(sample):
    """Ids of each document of a row."""
    found = {}
    for token, place in zip(sample.ids, sample.documents, strict=True):
        if place > 0:
            found.setdefault(place, []).append(token)
    return [found[place] for place in sorted(found)]


def number_of(backbone, window):
    said = text(backbone, window)
    return int(said[said.index("[") + 1 : said.index("]")])


def test_a_first_step_asks_as_inference_does_and_names_the_next_document(backbone, data):
    step = steps(data)[0]
    sample = sampler(backbone).sample(data, step, (), random.Random(0))
    own = documents(sample)
    assert [sum(sample.positives), len(sample.positives)] == [2, len(own)] and len(own) > 4
    mill = next(d for d in own if "Mill 0 was" in text(backbone, d))
    number = number_of(backbone, mill)
    assert text(backbone, mill) == f"<|im_start|>[{number}]. Mill 0\nMill 0 was built by Ann.[{number}]<|im_end|>"
    head = 3 + sum(map(len, own)) + len(backbone.tokenize_frame(prompts.TEMPLATE_HEAD)) - 3
    row = PromptCodec(backbone).question(step.question)
    assert sample.ids[head : head + len(row.ids)] == row.ids
    assert [place == 0 for place in sample.documents[head : head + len(row.ids)]] == row.votes
    assert text(backbone, sample.ids[head + len(row.ids) :]) == f"[{number}]{prompts.LIST_END}"
    learnt = [t for t in sample.labels if t != IGNORED]
    assert learnt == sample.ids[head + len(row.ids) :]
    template = len(backbone.tokenize_frame(prompts.TEMPLATE_HEAD))
    assert sample.positions[:template] == list(range(template))
    assert sample.positions[head:] == list(range(template + 3, template + 3 + len(sample.ids) - head))
    starts = [i for i, p in enumerate(sample.documents) if p > 0 and p != sample.documents[i - 1]]
    assert all(sample.positions[i] == 0 for i in starts)


def test_a_second_step_has_what_was_found_in_its_transcript(backbone, data):
    step = steps(data)[1]
    sample = sampler(backbone).sample(data, step, (), random.Random(0))
    said = [text(backbone, d) for d in documents(sample)]
    assert not any("Mill 0 was" in s for s in said)
    assert [bool(p) for p in sample.positives] == ["Ann was born" in s for s in said]
    row = text(backbone, [t for t, p in zip(sample.ids, sample.documents, strict=True) if p <= 0])
    before, _, rest = row.partition(prompts.LIST_END)
    number = int(before[before.rindex("[") + 1 : before.rindex("]")])
    transcript = Transcript(PromptCodec(backbone), step.question)
    document = data.documents["m0"]
    transcript.add({number: document_text(document.title, document.text)})
    expected = transcript.row()
    assert row.startswith(text(backbone, [*backbone.tokenize_frame(prompts.TEMPLATE_HEAD), *expected.ids]))
    assert rest.count(prompts.LIST_END) == 2
    votes = [p == 0 for p in sample.documents if p <= 0][len(backbone.tokenize_frame(prompts.TEMPLATE_HEAD)) :]
    assert votes[: len(expected.votes)] == expected.votes


@pytest.mark.parametrize("latent", [0.0, 1.0])
def test_the_answer_follows_the_engines_words(backbone, data, latent):
    step = steps(data)[2]
    sample = sampler(backbone, latent=latent).sample(data, step, (), random.Random(0))
    row = text(backbone, [t for t, p in zip(sample.ids, sample.documents, strict=True) if p <= 0])
    asked = f"{prompts.TURN_START}{prompts.question_again(step.question)}{prompts.LIST_END}"
    assert row.endswith(f"{prompts.RETRIEVED}{asked}{prompts.ANSWERING} Orm{prompts.TURN_END}")
    learnt = text(backbone, [t for t in sample.labels if t != IGNORED])
    assert learnt == f"{prompts.RETRIEVED}{prompts.ANSWERING} Orm{prompts.TURN_END}"
    assert ("Mill 0 was built" in row) == (latent == 0.0)
    own = [text(backbone, d) for d in documents(sample)]
    assert [bool(p) for p in sample.positives] == ["Mill 0 was" in s or "Ann was born" in s for s in own]


def test_numbers_are_drawn_afresh_and_everything_else_repeats(backbone, data):
    step = steps(data)[0]
    make = sampler(backbone)
    a, b, c = (make.sample(data, step, (), random.Random(seed)) for seed in (1, 1, 2))
    assert a == b and a != c
    numbers = {number_of(backbone, d) for seed in range(20) for d in
               documents(make.sample(data, step, (), random.Random(seed)))}  # fmt: skip
    assert len(numbers) > 60 and max(numbers) < 1000


def test_the_memory_is_as_large_as_told(backbone, data):
    for room in (150, 400):
        sample = sampler(backbone, memory_tokens=room).sample(data, steps(data)[0], (), random.Random(0))
        own = sum(place > 0 for place in sample.documents)
        assert room / 2 < own <= room


def test_a_long_document_is_cut_and_a_long_question_refused(backbone, data):
    long = replace(data.documents["m0"], text="word " * 200)
    cut = replace(data, documents={**data.documents, "m0": long})
    sample = sampler(backbone).sample(cut, steps(cut)[0], (), random.Random(0))
    assert max(map(len, documents(sample))) == 96
    endless = replace(steps(data)[0], question="why " * 2000)
    with pytest.raises(TrainingError, match="more than tiny-qwen3 reads"):
        sampler(backbone).sample(data, endless, (), random.Random(0))
    with pytest.raises(TrainingError, match="'gone', which its corpus lacks"):
        sampler(backbone).sample(data, replace(steps(data)[0], wanted=("gone",)), (), random.Random(0))


def test_negatives_are_mined_random_and_of_the_batch(backbone):
    big = corpus(60)
    step = steps(big)[0]
    hard = sampler(backbone, memory_tokens=150, hard=1, miners=[lambda *_: ["m0", "p33", "p34"]])
    found = [text(backbone, d) for d in documents(hard.sample(big, step, (), random.Random(0)))]
    assert any("born in Arno 33" in s for s in found) and not any("Tarn 34" in s for s in found)
    made = sampler(backbone, memory_tokens=150).sample(big, step, ["p44"], random.Random(0))
    assert any("born in Veld 44" in text(backbone, d) for d in documents(made))
    assert LexicalNegatives([big])(big, step)[0] == "m0"


def test_no_copy_of_a_right_passage_counts_as_wrong(backbone, data):
    twin = replace(data.documents["m0"], id="twin")
    both = replace(data, documents={**data.documents, "twin": twin})
    make = sampler(backbone, miners=[lambda *_: ["twin"]])
    for seed in range(5):
        sample = make.sample(both, steps(both)[0], (), random.Random(seed))
        assert sum("Mill 0 was" in text(backbone, d) for d in documents(sample)) == 1


def test_losses_are_a_function_of_the_batch(backbone, data):
    a, b = (PackedObjective(backbone, CONFIG, [data], 5) for _ in range(2))
    first, again, other = a.losses(7), b.losses(7), a.losses(8)
    assert first.total.item() == again.total.item() != other.total.item()
    assert first.parts == again.parts and first.tokens == again.tokens > 800
    assert first.total.item() == pytest.approx(first.parts["lm"] + 0.1 * first.parts["aux"], rel=1e-5)


def test_the_language_model_is_that_of_all_logits(backbone, data):
    objective = PackedObjective(backbone, CONFIG, [data], 5)
    made = Batch.of(objective.sampler.samples([(data, s) for s in steps(data)], random.Random(0)), backbone.device)
    from msa_plugin.training.losses import token_loss
    from msa_plugin.training.packed import PackedPass

    _, lm = objective._forward(made)
    p = made.packed
    state = PackedPass(p, objective.router, objective.reading, 3, objective.lora)
    logits = backbone.forward(state, p.ids, p.mask, p.positions, logits="all")
    torch.testing.assert_close(lm, token_loss(logits[:, :-1], made.labels[:, 1:]))


def test_what_trains_gets_a_gradient(backbone, data):
    for trains in ("router", "lora", "all"):
        own = packed_backbone() if trains == "all" else backbone
        objective = PackedObjective(own, CONFIG.model_copy(update={"trains": trains}), [data], 0)
        objective.losses(0).total.backward()
        names = {name for name, p in objective.parameters.items() if p.grad is not None and bool(p.grad.any())}
        kinds = {name.split(".")[0] for name in objective.parameters}
        assert kinds == {"router"} | ({"lora"} if trains == "lora" else {"backbone"} if trains == "all" else set())
        assert {f"router.{i}.{part}" for i in (2, 3) for part in ("q_weight", "k_weight")} <= names
        if trains == "lora":  # a fresh update's other half has none yet
            assert {n for n in objective.parameters if n.endswith(".up")} <= names
        if trains == "all":
            assert {n for n in objective.parameters if n.startswith("backbone")} <= names
        else:
            assert all(p.grad is None for p in own.model.parameters())


def test_the_language_model_teaches_routing_nothing(backbone, data):
    objective = PackedObjective(backbone, CONFIG.model_copy(update={"aux": 0.0}), [data], 0)
    objective.losses(0).total.backward()
    assert not any(p.grad is not None and bool(p.grad.any()) for n, p in objective.parameters.items() if "router" in n)


@pytest.mark.slow
def test_it_learns_and_the_adapter_answers(tmp_path, data):
    backbone = packed_backbone()
    objective = PackedObjective(backbone, CONFIG.model_copy(update={"held_out": 1}), [data], 0)
    before = objective.evaluate()
    done = Trainer(objective, TrainConfig(steps=25, lr=1e-2, best="-lm", evaluate_every=25), tmp_path / "run").run()
    after = done.measured
    assert after["lm"] < 0.8 * before["lm"] and set(after) == {"lm", "recall"}
    with LatentMemory.open(tmp_path / "bank", model=backbone, adapter=done.adapter) as memory:
        memory.add(list(chains().documents))
        config = memory.engine.adapter.config
        assert config.routing.selection == "per_layer" and config.numbered and config.id_width == 3
        assert config.lora.rank == 3 and config.abilities.emit_ids
        answer = memory.ask("Where was the builder of mill 2 born?", max_new_tokens=4)
        assert answer.trace.mode == "latent" and answer.trace.interleave == "ids"
        assert answer.trace.rounds and memory.retrieve("mill 2", 3)


def test_it_goes_on_from_an_adapter(backbone, data):
    first = PackedObjective(backbone, CONFIG, [data], 0)
    with torch.no_grad():
        for p in first.parameters.values():
            p.add_(0.01)
    saved = first.adapter({})
    again = PackedObjective(backbone, CONFIG, [data], 9, adapter=saved)
    for name, p in first.parameters.items():
        assert torch.equal(again.parameters[name], p) and again.parameters[name] is not p
    with pytest.raises(ConfigError, match="routes otherwise"):
        PackedObjective(backbone, CONFIG.model_copy(update={"pooling": 4}), [data], 0, adapter=saved)


def test_routers_start_from_the_attention_or_at_random(backbone, data):
    q = backbone.model.model.layers[2].self_attn.q_proj.weight
    assert torch.equal(PackedObjective(backbone, CONFIG, [data]).parameters["router.2.q_weight"], q)
    chance = PackedObjective(backbone, CONFIG.model_copy(update={"start": "random"}), [data])
    assert chance.parameters["router.2.q_weight"].shape == q.shape
    assert not torch.equal(chance.parameters["router.2.q_weight"], q)


@pytest.mark.slow
def test_everything_trained_is_written_in_the_references_format(tmp_path, data):
    backbone = packed_backbone()
    config = CONFIG.model_copy(update={"trains": "all"})
    objective = PackedObjective(backbone, config, [data], 0)
    Trainer(objective, TrainConfig(steps=2, lr=1e-3), tmp_path / "run").run()
    weight = backbone.model.model.layers[0].mlp.up_proj.weight.detach().clone()
    folder = export(backbone, objective.adapter({}), tmp_path / "out")
    loaded, adapter = load_reference(folder, tokenizer=True)
    assert folder.name == "reference" and adapter.config.abilities.emit_ids
    torch.testing.assert_close(loaded.model.model.layers[0].mlp.up_proj.weight, weight)
    torch.testing.assert_close(adapter.router.layers[3].k_weight, objective.router.layers[3].k_weight.detach())


def test_a_tokenizer_without_the_references_marker_may_have_another(data):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [prompts.LIST_END_ELSE]})
    own = Backbone(tiny_model("llama"), tokenizer, "other")
    sample = sampler(own).sample(data, steps(data)[0], (), random.Random(0))
    assert sample.ids[-1] == PromptCodec(own).list_end == own.special(prompts.LIST_END_ELSE)


def test_what_cannot_be_trained_is_refused(backbone, data):
    with pytest.raises(ConfigError, match="no special token"):
        PackedObjective(tiny_backbone(), CONFIG, [data])
    with pytest.raises(ConfigError, match="no layer 9"):
        PackedObjective(backbone, CONFIG.model_copy(update={"layers": (2, 9)}), [data])
    with pytest.raises(TrainingError, match="leaves none"):
        PackedObjective(backbone, CONFIG.model_copy(update={"held_out": 6}), [data])
    with pytest.raises(TrainingError, match="no step"):
        PackedObjective(backbone, CONFIG, [replace(data, steps=())])
