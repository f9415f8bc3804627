"""Chains of two passages about a made-up island, for tests of samples and of training."""

import torch

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.training.data import corpus_of
from msa_plugin.types import Document
from reference_checkpoint import marker_tokenizer
from tiny import tiny_model

PEOPLE = ("Ann", "Bo", "Cy", "Dee", "Eli", "Fay")
TOWNS = ("Orm", "Lisse", "Veld", "Arno", "Tarn", "Quay")


def chains(count=6, name="island"):
    documents, questions = [], []
    for i in range(count):
        person, town = PEOPLE[i % 6], TOWNS[i % 6]
        documents.append(Document(f"m{i}", f"Mill {i} was built by {person}.", f"Mill {i}"))
        documents.append(Document(f"p{i}", f"{person} was born in {town} {i}."))
        text = f"Where was the builder of mill {i} born?"
        questions.append(Question(f"q{i}", text, (town,), {f"m{i}": 1, f"p{i}": 1}, hops=2))
    return Dataset(name, tuple(documents), tuple(questions))


def corpus(count=6, name="island"):
    return corpus_of(chains(count, name))


def answering(data):
    """The step of a corpus that has an answer."""
    return next(s for s in data.steps if s.answer)


def moved(made):
    """An objective whose update changes something."""
    with torch.no_grad():
        for name, value in made.parameters.items():
            if name.endswith("up"):
                value.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return made


def packed_backbone(seed=0, **overrides):
    return Backbone(tiny_model("qwen3", seed, tie_word_embeddings=True, **overrides), marker_tokenizer(), "tiny-qwen3")
