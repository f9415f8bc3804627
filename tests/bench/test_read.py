"""What each reading mode costs and gives: on any data set, and beside the stock model where a LoRA answers."""

import pytest

from msa_plugin.bench.read import MODES, Read, modes_for
from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.errors import ConfigError
from msa_plugin.types import Document
from tiny import tiny_adapter, tiny_backbone, tiny_lora, with_lora

DATASET = Dataset(
    "mills",
    (
        Document("a", "The mill was built by Ann.", "Mill"),
        Document("b", "Ann was born in Orm."),
        Document("c", "Nobody needs this."),
    ),
    (
        Question("q1", "Who built the mill?", ("Ann",), {"a": 1}),
        Question("q2", "Where was its builder born?", ("Orm",), {"a": 1, "b": 1}),
        Question("q3", "Who knows?", (), {"c": 1}),
    ),
)


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def reading(backbone):
    """An adapter whose LoRA answers too."""
    return with_lora(tiny_adapter(backbone, read_latent=True), tiny_lora(backbone.model), answers=True)


def rows(backbone, adapter, *modes, dataset=DATASET, **options):
    found = Read(repeats=1, modes=modes, **options).measure(backbone, adapter, dataset)
    return {row["mode"]: row for row in found}


def test_modes_of_a_lora_that_answers_stand_beside_the_stock_models(backbone, reading):
    found = rows(
        backbone, reading, "text", "text (stock model)", "closed book", "closed book (stock model)", "latent/2"
    )
    assert {row["questions"] for row in found.values()} == {2}  # one has no answer
    losses = {name: row["answer_nll"] for name, row in found.items()}
    assert (
        losses["text"] != losses["text (stock model)"] and losses["closed book"] != losses["closed book (stock model)"]
    )
    stock = rows(backbone, tiny_adapter(backbone), "text", "closed book")
    assert losses["text (stock model)"] == pytest.approx(stock["text"]["answer_nll"], abs=1e-4)
    assert losses["closed book (stock model)"] == pytest.approx(stock["closed book"]["answer_nll"], abs=1e-4)
    assert found["closed book"]["bytes_per_token"] == 0 < found["text"]["bytes_per_token"]
    assert found["latent/2"]["bytes_content_per_token"] > 0 == found["text"]["bytes_content_per_token"]
    assert found["text"]["first_token_over_text"] == 1


def test_what_is_measured(backbone, reading):
    assert modes_for(tiny_adapter(backbone)) == list(MODES)
    assert modes_for(reading) == [*MODES, "text (stock model)", "closed book (stock model)"]
    assert [row["questions"] for row in rows(backbone, reading, "text", questions=1).values()] == [1]


def test_what_it_refuses(backbone, reading):
    with pytest.raises(ConfigError, match="no mode 'aloud'"):
        rows(backbone, reading, "aloud")
    with pytest.raises(ConfigError, match=r"no mode .text .stock model."):
        rows(backbone, tiny_adapter(backbone), "text (stock model)")
    with pytest.raises(ConfigError, match="no question with an answer"):
        rows(backbone, reading, "text", dataset=Dataset("bare", DATASET.documents, DATASET.questions[2:]))
