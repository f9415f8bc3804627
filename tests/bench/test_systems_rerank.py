"""Reranking: the likelihood that it sorts by, and what becomes of the rest of a ranking."""

from __future__ import annotations

import pytest
import torch
from system_toys import Given, ids, workspace

from msa_plugin import prompts
from msa_plugin.bench.base import Found
from msa_plugin.bench.result import Scored
from msa_plugin.bench.systems import create, rerank
from msa_plugin.bench.systems.rerank import Reranked
from msa_plugin.embedding import rerankers
from msa_plugin.embedding.rerankers import CrossEncoder, Likelihood
from tiny import tiny_backbone

PASSAGES = ["A glacier is ice.", "Bees make honey, and so on and so forth. " * 3, "x", "ends with <|im_end|>\n"]
ORDER = ["lighthouse", "beekeeping", "glacier", "violin", "harbour", "compiler"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory, backbone):
    return workspace(tmp_path_factory.mktemp("toy"), backbone)


def reference(backbone, question, passage):
    """The stock model, one row at a time, with the chat template written out."""
    before, after = prompts.question_of()
    frame = backbone.tokenize_frame("<|im_start|>user\n")
    end = backbone.tokenize_frame("<|im_end|>\n<|im_start|>assistant\n")
    first, shown, last, asked = (backbone.tokenize(text) for text in (before, passage, after, question))
    prompt = [*frame, *first, *shown, *last, *end]
    with torch.inference_mode():
        logits = backbone.model(torch.tensor([prompt + asked])).logits[0].float()
    found = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(asked)[:, None])
    return float(found.mean())


@pytest.mark.parametrize("question", ["What is a glacier?", "?", "Is <|im_start|> a token?"])
def test_likelihood_in_batches_is_that_of_single_rows(toy, question):
    scores = Likelihood(toy.memory.engine).scores(question, PASSAGES)
    backbone = toy.memory.engine.backbone
    assert scores == pytest.approx([reference(backbone, question, p) for p in PASSAGES], abs=1e-4)
    assert len({round(s, 4) for s in scores}) == len(PASSAGES)


def test_likelihood_with_sliding_windows(tmp_path):
    toy = workspace(tmp_path, tiny_backbone("mistral-sliding"))
    scores = Likelihood(toy.memory.engine).scores("What is a glacier?", PASSAGES[:2])
    backbone = toy.memory.engine.backbone
    assert scores == pytest.approx([reference(backbone, "What is a glacier?", p) for p in PASSAGES[:2]], abs=1e-4)


def test_size_of_batches_changes_nothing(toy, monkeypatch):
    likelihood = Likelihood(toy.memory.engine)
    whole = likelihood.scores("Who?", PASSAGES)
    monkeypatch.setattr(rerankers, "_LOGITS", 1)
    assert likelihood.scores("Who?", PASSAGES) == pytest.approx(whole, abs=1e-5)


def test_text_of_passages_is_never_a_control_token(toy):
    backbone = toy.memory.engine.backbone
    likelihood = Likelihood(toy.memory.engine)
    [row] = likelihood.rows([5], ["<|im_end|>\n<|im_start|>assistant"])
    marks = {backbone.special("<|im_start|>"), backbone.special("<|im_end|>")}
    assert [t for t in row if t in marks] == [t for t in likelihood.head + likelihood.tail if t in marks]


def test_long_passages_keep_their_beginning(toy):
    likelihood = Likelihood(toy.memory.engine)
    budget = toy.memory.config.context_tokens
    [row] = likelihood.rows([5] * 10, ["y" * 9000])
    assert len(row) == len(likelihood.head) + budget + len(likelihood.tail)
    longest = toy.memory.engine.backbone.spec.max_positions
    [row] = likelihood.rows([5] * (longest - 300), ["y" * 9000])
    assert len(row) + longest - 300 <= longest


def test_nothing_to_score(toy):
    likelihood = Likelihood(toy.memory.engine)
    assert likelihood.scores("", PASSAGES[:2]) == [0.0, 0.0]
    assert likelihood.scores("Who?", []) == []


class Longest:
    """Scores by length; remembers what it saw."""

    def __init__(self):
        self.seen = []

    def scores(self, question, passages):
        self.seen.append((question, passages))
        return [-float(len(p)) for p in passages]


def reranked(toy, base, depth):
    system = Reranked("given+rerank", toy, base, depth, None)
    system.prepare()
    system.scorer = Longest()
    return system


def test_only_the_best_are_reranked(toy):
    system = reranked(toy, Given(lambda q: ORDER), 4)
    [found] = system.find(["?"], 6)
    lengths = {d.id: len(d.text) for d in toy.dataset.documents}
    assert ids(found) == [*sorted(ORDER[:4], key=lengths.get), *ORDER[4:]]
    assert len(system.scorer.seen[0][1]) == 4
    scores = [hit.score for hit in found.ranking]
    assert scores == sorted(scores, reverse=True)
    assert found.seconds["rerank"] > 0
    assert found.seconds["search"] == 0.5


def test_fewer_wanted_than_reranked(toy):
    system = reranked(toy, Given(lambda q: ORDER), 5)
    lengths = {d.id: len(d.text) for d in toy.dataset.documents}
    assert ids(system.find(["?"], 1)[0]) == sorted(ORDER[:5], key=lengths.get)[:1]


def test_equal_scores_keep_the_bases_order(toy):
    system = reranked(toy, Given(lambda q: ORDER), 6)
    system.scorer.scores = lambda question, passages: [0.0] * len(passages)
    assert ids(system.find(["?"], 6)[0]) == ORDER


def test_a_base_that_finds_nothing(toy):
    system = reranked(toy, Given(lambda q: []), 6)
    assert system.find(["?"], 6)[0].ranking == ()
    assert system.scorer.seen == []


def test_rounds_are_kept_and_the_last_one_takes_the_time(toy):
    base = Given(lambda q: ORDER)
    rounds = ({"search": 1.0}, {"search": 2.0})
    base.find = lambda questions, k: [
        Found((Scored("violin", 1.0),), {"search": 3.0}, ("a", "b"), rounds) for _ in questions
    ]
    [found] = reranked(toy, base, 3).find(["?"], 5)
    assert found.rounds[0] == {"search": 1.0}
    assert set(found.rounds[1]) == {"search", "rerank"}
    assert found.queries == ("a", "b")


def test_it_costs_and_closes_as_its_base(toy):
    base = Given(lambda q: ORDER, notes=["cut"])
    system = Reranked("given+rerank", toy, base, 3, None)
    assert system.prepare() == base.prepare()
    assert system.notes == ("cut",)
    system.close()
    assert base.closed


def test_depth_comes_from_the_name(toy):
    assert create("bm25+rerank@7", toy).depth == 7
    assert create("bm25+rerank", toy).depth == rerank.RERANKED


def test_cross_encoder(toy, monkeypatch):
    asked = []

    class Model:
        def predict(self, pairs, show_progress_bar):
            asked.extend(pairs)
            return torch.tensor([[9.0, float(p[1].startswith("Glacier"))] for p in pairs])

    monkeypatch.setattr(rerankers, "load_cross_encoder", lambda model, device: Model())
    system = create("bm25+rerank:org/cross", toy)
    system.bases = (Given(lambda q: ORDER),)
    system.prepare()
    assert isinstance(system.scorer, CrossEncoder)
    [found] = system.find(["What?"], 6)
    assert ids(found)[0] != "glacier"  # titles come first, so that no text starts with the topic
    assert asked[0][0] == "What?"
    assert asked[0][1].startswith("lig\nLighthouse")
    assert {hit.score for hit in found.ranking} == {0.0}  # the last label's score
