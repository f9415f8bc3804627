"""Closed-form calibration: what whitening promises, and that it finds what a random router does not."""

import pytest
import torch

from msa_plugin.config import Abilities
from msa_plugin.data import calibration_questions, sample_documents
from msa_plugin.encoding.calibration import (
    Calibration,
    CalibrationConfig,
    default_layers,
    discriminants,
    neighbour_noise,
    token_weights,
)
from msa_plugin.errors import ConfigError
from msa_plugin.memory import LatentMemory
from tiny import tiny_backbone

PASSAGES = [f"{d.title}\n{d.text}" for d in sample_documents()]
KEYS_ALONE = {"lexical": 0, "titles": 0, "mentions": 0}


def _noisy(seed=0):
    """Points that differ in their first two coordinates, and noise that lives in the others."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(600, 8, generator=generator)
    noise = torch.randn(600, 8, generator=generator) * torch.tensor([0.1, 0.1, 5, 5, 5, 5, 5, 5])
    return states, noise


def test_directions_with_little_noise_come_first():
    states, noise = _noisy()
    projection = discriminants(states, noise, 2, 1e-6, 1.0)
    assert projection.shape == (2, 8)
    assert projection[:, :2].norm() > 20 * projection[:, 2:].norm()


def test_with_full_shrinkage_and_power_it_is_whitening():
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(500, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + 3
    white = (states - states.mean(0)) @ discriminants(states, states, 8, 1.0, 1.0).T
    assert (white.T @ white / 499 - torch.eye(8)).abs().max() < 1e-3


def test_directions_without_variance_are_dropped():
    states = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    assert discriminants(states, states, 6, 0.5, 1.0).shape == (3, 6)


def test_noise_between_neighbours_stays_within_documents():
    states = torch.tensor([[0.0], [1.0], [10.0], [13.0]])
    assert neighbour_noise(states, torch.tensor([0, 0, 1, 1])).flatten().tolist() == [1.0, 3.0]
    assert len(neighbour_noise(states, torch.tensor([0, 1, 2, 3]))) == 3


def test_frequent_tokens_weigh_less():
    weights = token_weights([[3, 3, 3, 4], [3, 5]], 8, 1e-3, silent=[1])
    assert weights[3] < weights[4] == weights[5] < weights[7] == 1.0
    assert weights[1] == 0.0
    assert weights[3] == pytest.approx(1e-3 / (1e-3 + 4 / 6))


def test_default_layers_are_low():
    assert default_layers(30) == (1, 5)
    assert default_layers(36) == (1, 6)
    assert default_layers(2) == (0,)


def test_calibration_is_reproducible_and_says_what_it_is():
    backbone = tiny_backbone()
    config = CalibrationConfig(layers=(0, 1), dims=32, pooling=16, window=1024)
    first = Calibration(backbone, config).run(PASSAGES, calibration_questions())
    again = Calibration(backbone, config).run(PASSAGES, calibration_questions())
    assert first.hash() == again.hash()
    assert first.config.abilities == Abilities(route=True)
    assert first.config.routing.key_groups == {"shared": 32}
    assert first.config.provenance["passages"] == len(PASSAGES)
    assert first.config.prefix == "<|im_start|>"


def test_a_long_text_gives_several_passages():
    backbone = tiny_backbone()
    config = CalibrationConfig(layers=(0,), dims=8, window=64)
    adapter = Calibration(backbone, config).run(["".join(PASSAGES)[:6000]], ["why?"])
    # 63 bytes and the first token fill a window; some characters take more than one byte.
    assert 95 <= adapter.config.provenance["passages"] <= 97
    assert adapter.config.provenance["questions"] == 1


@pytest.mark.parametrize(
    ("config", "passages", "message"),
    [
        (CalibrationConfig(layers=(0, 9)), PASSAGES, "layers 0 to 3"),
        (CalibrationConfig(), ["only one"], "at least 2 passages"),
        (CalibrationConfig(), ["", ""], "at least 2 passages"),
    ],
)
def test_too_little_to_go_on(config, passages, message):
    with pytest.raises(ConfigError, match=message):
        Calibration(tiny_backbone(), config).run(passages, ["why?"])


@pytest.mark.slow
def test_calibrated_routing_finds_a_text_by_its_own_words_and_every_layers_share_is_centred(tmp_path, backbone):
    # A byte is a token here, so a chunk has to be as long as a text to say anything about it.
    config = CalibrationConfig(layers=(0, 1), dims=16, pooling=1024, window=1024)
    documents = sample_documents()
    # Questions are whole texts in this test, so their centre must be that of whole texts.
    adapter = Calibration(backbone, config).run(PASSAGES, [d.text for d in documents])
    with LatentMemory.open(tmp_path / "bank", model=backbone, adapter=adapter, **KEYS_ALONE) as memory:
        memory.add(documents)
        rows = memory.retrieve([d.text for d in documents], len(documents))
    assert [row[0].id for row in rows] == [d.id for d in documents]
    shares = torch.tensor([[[hit.layer_scores[0], hit.layer_scores[1]] for hit in row] for row in rows])
    totals = torch.tensor([[hit.score for hit in row] for row in rows])
    assert (shares.sum(2) - totals).abs().max() < 0.02
    for row in shares:  # not against each other, as they were when the first layer held both centres
        assert torch.corrcoef(row.T)[0, 1] > -0.5
