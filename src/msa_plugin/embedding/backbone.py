"""The backbone as a sentence embedder: its last hidden states, averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from msa_plugin.backbone.attention import CausalRows
from msa_plugin.embedding.sentence import Vectors
from msa_plugin.encoding.encoder import pad_right, plan_batches
from msa_plugin.engine.engine import Engine


class BackboneEmbedder:
    """The backbone's last hidden states, averaged over the text's tokens.

    Texts are read as documents are encoded, in windows behind the adapter's prefix token; the prefix is left out of the
    mean, because a decoder's first token is an attention sink whose state says nothing about the text.
    """

    limit = None

    def __init__(self, engine: Engine) -> None:
        """`engine` supplies the backbone, the prefix, the window and the size of batches."""
        self.engine, self.backbone, self.encoder = engine, engine.backbone, engine.encoder

    @property
    def key(self) -> str:
        """Backbone, tokenizer, prefix and window."""
        said = f"{self.backbone.tokenizer_hash()} {self.encoder.prefix} {self.encoder.layout.window}"
        return f"backbone-{hashlib.sha256(f'{self.backbone.weights_hash()} {said}'.encode()).hexdigest()[:16]}"

    def documents(self, given: list[str]) -> Vectors:
        """All windows of a text count, each token once."""
        cut = [self.encoder.windows(ids) for ids in self.backbone.tokenize_batch(given)]
        flat = [window for windows in cut for window in windows]
        sums: dict[int, Tensor] = {}
        for batch in plan_batches([len(w) for w in flat], self.engine.batch_tokens):
            sums.update(zip(batch, self._sums([flat[i] for i in batch]), strict=True))
        rows, start = [], 0
        for windows in cut:
            rows.append(torch.stack([sums[start + i] for i in range(len(windows))]).sum(0))
            start += len(windows)
        return torch.nn.functional.normalize(torch.stack(rows), dim=1).numpy()

    def queries(self, given: list[str]) -> Vectors:
        """As documents."""
        return self.documents(given)

    def lengths(self, given: list[str]) -> list[int]:
        """By the backbone's tokenizer."""
        return [len(ids) for ids in self.backbone.tokenize_batch(given)]

    def _sums(self, rows: Sequence[list[int]]) -> Tensor:
        """Sum of states [B, hidden] over each row's tokens behind the prefix (over the prefix, if that is all)."""
        states: list[Tensor] = []
        ids, mask = pad_right(rows, self.backbone.device)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        body = self.backbone.model.model
        handle = body.register_forward_hook(lambda module, given, output: states.append(output.last_hidden_state))
        try:
            self.backbone.run(CausalRows(), ids, mask, positions, logits="none")
        finally:
            handle.remove()
        counted = mask.clone()
        prefix = len(self.encoder.prefix)
        counted[:, :prefix] &= (mask.sum(1) <= prefix)[:, None]
        return (states[0].float() * counted[..., None]).sum(1).cpu()
