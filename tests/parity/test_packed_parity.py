"""Training mode against recorded numbers of the reference: hidden states, scores, every loss, gradients.

Runs every folder under MSA_GOLDEN whose name ends in `_train`.
"""

import json
import os
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from msa_plugin.backbone.checkpoint import load_reference
from msa_plugin.backbone.families import decoder_layers
from msa_plugin.backbone.router import Router, RouterLayer
from msa_plugin.training import losses
from msa_plugin.training.losses import METHODS, auxiliary_loss, routing_loss, token_loss
from msa_plugin.training.packed import Packed, PackedPass

ROOT = Path(os.environ.get("MSA_GOLDEN") or Path(__file__).resolve().parents[3] / "shared" / "golden")
CASES = sorted(ROOT.glob("*_train")) if ROOT.is_dir() else []
pytestmark = pytest.mark.skipif(not CASES, reason=f"no recorded training cases under {ROOT}; set MSA_GOLDEN")


class Run:
    """One case: its forward with gradients, and everything that was recorded."""

    def __init__(self, case):
        self.expected = load_file(str(case / "expected.safetensors"))
        given = load_file(str(case / "inputs.safetensors"))
        self.settings = json.loads((case / "config.json").read_text())["msa_config"]
        self.backbone, adapter = load_reference(case)
        self.labels = given["labels"]
        rows = range(len(self.labels))
        self.positives = [given[f"aux_labels.{i}"].bool() for i in rows]
        self.packed = Packed(
            given["input_ids"], given["position_ids"], given["doc_ids"], given["attention_mask"].bool()
        )
        for weight in self.backbone.model.parameters():
            weight.requires_grad_()
        layers = {
            i: RouterLayer(r.q_weight.clone().requires_grad_(), r.k_weight.clone().requires_grad_())
            for i, r in adapter.router.layers.items()
        }
        self.router = Router(adapter.config.routing, layers)
        self.temperature = adapter.config.provenance["temperature"]["value"][0]
        self.state = PackedPass(self.packed, self.router, adapter.config.reading, self.settings["top_k_docs"])
        self.hidden = {}
        handles = [
            layer.register_forward_hook(lambda module, given, output, i=i: self.hidden.update({i: output}))
            for i, layer in enumerate(decoder_layers(self.backbone.model))
        ]
        p = self.packed
        self.logits = self.backbone.forward(self.state, p.ids, p.mask, p.positions, logits="all")
        for handle in handles:
            handle.remove()

    def aux(self, method):
        if method != "INFONCE_DECOUPLE_FOCAL":
            return auxiliary_loss(self.state.scores, self.positives, method, temperature=self.temperature)
        return torch.stack(
            [
                self._reference_focal(row[1 : len(wanted) + 1], wanted, method)
                for scores in self.state.scores.values()
                for row, wanted in zip(scores, self.positives, strict=True)
            ]
        ).mean()

    def _reference_focal(self, scores, wanted, method):
        """The reference's exponent is the number of positives, by mistake."""
        with patch.object(losses, "GAMMA", float(wanted.sum())):
            return routing_loss(scores, wanted, method, temperature=self.temperature)

    def loss(self):
        """As recorded: lm + 0.1 aux + answer, every row being one with an answer."""
        lm = response_loss(self.logits, self.labels)
        return lm + 0.1 * self.aux("INFONCE") + lm

    def gradient(self, name):
        parts = name.split(".")
        if "router_" not in name:
            return self.backbone.model.get_parameter(name).grad
        layer = self.router.layers[int(parts[2])]
        return (layer.q_weight if "router_q" in name else layer.k_weight).grad


@pytest.fixture(scope="module", params=CASES, ids=lambda p: p.name)
def run(request):
    return Run(request.param)


def response_loss(logits, labels):
    return token_loss(logits[:, :-1], labels[:, 1:])


def test_hidden_states(run):
    real = run.packed.mask
    for name, wanted in run.expected.items():
        if name.endswith("train_hidden"):
            found = run.hidden[int(name.split(".")[0].removeprefix("layer"))]
            torch.testing.assert_close(found[real], wanted[real], atol=1e-4, rtol=1e-4)


def test_scores_and_what_they_select(run):
    names = [n for n in run.expected if n.endswith("train_doc_scores")]
    assert {int(n.split(".")[0].removeprefix("layer")) for n in names} == set(run.state.scores)
    for name in names:
        found, wanted = run.state.scores[int(name.split(".")[0].removeprefix("layer"))], run.expected[name]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_logits(run):
    real = run.packed.mask
    torch.testing.assert_close(run.logits[real], run.expected["train.logits"][real], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "BCE"])
def test_routing_losses(run, method):
    wanted = run.expected[f"train.aux_loss.{method}"]
    torch.testing.assert_close(run.aux(method), wanted, atol=1e-5, rtol=1e-5)


def test_losses_and_gradients(run):
    torch.testing.assert_close(response_loss(run.logits, run.labels), run.expected["train.lm_loss"], atol=1e-4, rtol=0)
    loss = run.loss()
    torch.testing.assert_close(loss, run.expected["train.loss"], atol=1e-3, rtol=0)
    loss.backward(retain_graph=True)
    names = [n for n in run.expected if n.startswith("grad.")]
    assert any("router_" in n for n in names)
    for name in names:
        wanted = run.expected[name]
        torch.testing.assert_close(
            run.gradient(name.removeprefix("grad.")), wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-3
        )


def test_the_language_model_loss_teaches_routing_nothing(run):
    weights = [w for layer in run.router.layers.values() for w in (layer.q_weight, layer.k_weight)]
    found = torch.autograd.grad(response_loss(run.logits, run.labels), weights, allow_unused=True, retain_graph=True)
    assert all(g is None for g in found)
