"""The switch between kernels, from the settings to what comes out: the same bank, ranking and answer either way."""

import pytest
import torch

from facade import PER_LAYER, opened, topics
from msa_kernels import dispatch
from msa_plugin.errors import ConfigError
from tiny import tiny_adapter, tiny_backbone

CASES = {
    "shared": {"query_reduce": "pooled"},
    "per layer": PER_LAYER,
    "K as routing key": {**PER_LAYER, "source": "attention"},
    "tokens weighed": {"token_weighted": True, "document_mix": 0.5},
}


@pytest.fixture
def interpreter():
    """Triton on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("compares on the CPU, in Triton's interpreter")
    pytest.importorskip("triton", minversion="3.7", reason="Triton is not installed: pip install 'msa-plugin[triton]'")


def _filled(path, backbone, adapter, kernels):
    memory = opened(path / kernels, backbone, adapter, reading="latent", kernels=kernels, dtype="float32")
    memory.add(topics(3))
    return memory


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_same_bank_ranking_and_answer(interpreter, tmp_path, monkeypatch, case):
    used = []
    real = dispatch.use_triton
    monkeypatch.setattr(dispatch, "use_triton", lambda kernel, *rest: real(kernel, *rest) and not used.append(kernel))
    backbone = tiny_backbone()
    adapter = tiny_adapter(backbone, read_latent=True, **CASES[case])
    plain = _filled(tmp_path, backbone, adapter, "torch")
    assert not used
    with plain, _filled(tmp_path, backbone, adapter, "triton") as fused:
        assert set(used) == {"pooling"}
        ordinals = list(range(1, 4))
        for layer in adapter.config.reading.layers:
            for one, other in zip(
                plain._bank.content(ordinals, layer), fused._bank.content(ordinals, layer), strict=True
            ):
                torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
        question = "Which text is on the glacier?"
        wanted, found = plain.retrieve(question, 2), fused.retrieve(question, 2)
        assert "routing" in used
        assert [hit.id for hit in found] == [hit.id for hit in wanted]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], abs=1e-3)
        answers = [memory.ask(question, max_new_tokens=4) for memory in (plain, fused)]
        assert answers[0].text == answers[1].text
        assert "decode attention" in used
        assert [s.id for s in answers[0].sources] == [s.id for s in answers[1].sources]


def test_insisting_on_what_cannot_run_is_refused_at_the_door(tmp_path, backbone, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ConfigError, match=r"kernels='triton'.*not on a CUDA device"):
        opened(tmp_path, backbone, kernels="triton")
    assert not (tmp_path / "bank").exists()


def test_insisting_with_an_adapter_that_has_no_kernel_is_refused_too(interpreter, tmp_path, backbone):
    adapter = tiny_adapter(backbone, chunk_reduce="mean")
    with pytest.raises(ConfigError, match="mean of its chunks"):
        opened(tmp_path, backbone, adapter, kernels="triton")
