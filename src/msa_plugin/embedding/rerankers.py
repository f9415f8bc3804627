"""How well passages fit a question: by the backbone's likelihood of the question, or by a cross-encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from msa_plugin import prompts
from msa_plugin.backbone.attention import ForwardState
from msa_plugin.embedding.models import load_cross_encoder
from msa_plugin.encoding.encoder import pad_left, plan_batches
from msa_plugin.engine.engine import Engine

_LOGITS = 1 << 26  # numbers of logits computed at once, 256 MiB


class Scorer(Protocol):
    """How well passages fit a question; higher is better."""

    def scores(self, question: str, passages: list[str]) -> list[float]:
        """A score for each passage."""


class Likelihood:
    """Mean log-likelihood (nats a token) of the question as the model's reply to a passage (UPR, Sachan et al. 2022).

    Passages and questions are tokenised as plain text between the pieces of the backbone's own chat template. A passage
    keeps its first `context_tokens` tokens, or as many as the backbone's window has room for.
    """

    def __init__(self, engine: Engine) -> None:
        """`engine` supplies the backbone and the sizes."""
        self.backbone, self.context_tokens = engine.backbone, engine.context_tokens
        self.batch_tokens = engine.batch_tokens
        before, after = prompts.question_of()
        frame = prompts.conversation(self.backbone.tokenizer, [{"role": "user", "content": ""}])
        at = next(place for place, (_, is_frame) in enumerate(frame) if not is_frame)
        self.head = self._frame(frame[:at]) + self.backbone.tokenize(before)
        self.tail = self.backbone.tokenize(after) + self._frame(frame[at + 1 :])

    def _frame(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        return [token for text, _ in pieces for token in self.backbone.tokenize_frame(text)]

    def scores(self, question: str, passages: list[str]) -> list[float]:
        """One mean log-likelihood a passage; 0 for a question without a token."""
        asked = self.backbone.tokenize(question)
        if not asked or not passages:
            return [0.0] * len(passages)
        rows = self.rows(asked, passages)
        most = max(1, _LOGITS // (len(asked) * self.backbone.spec.vocab))
        found = [0.0] * len(rows)
        for planned in plan_batches([len(row) + len(asked) for row in rows], self.batch_tokens):
            for start in range(0, len(planned), most):
                batch = planned[start : start + most]
                for place, value in zip(batch, self._batch([rows[i] for i in batch], asked), strict=True):
                    found[place] = value
        return found

    def rows(self, asked: list[int], passages: list[str]) -> list[list[int]]:
        """The prompt of each passage, as token ids, up to where the model would start to write the question."""
        longest = self.backbone.spec.max_positions - len(self.head) - len(self.tail) - len(asked)
        room = max(0, min(self.context_tokens, longest))
        return [self.head + ids[:room] + self.tail for ids in self.backbone.tokenize_batch(passages)]

    def _batch(self, rows: list[list[int]], asked: list[int]) -> list[float]:
        """Prompts first, with a cache; then the question behind each of them, whose logits alone are needed."""
        ids, mask = pad_left(rows, self.backbone.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        state = ForwardState(keep_cache=True)
        logits = [self.backbone.run(state, ids, mask, positions)]
        wanted = torch.tensor(asked, device=ids.device)
        if len(asked) > 1:
            follow = wanted[:-1].expand(len(rows), -1)
            after = positions[:, -1:] + 1 + torch.arange(follow.shape[1], device=ids.device)
            logits.append(
                self.backbone.run(state, follow, torch.ones_like(follow, dtype=torch.bool), after, logits="all")
            )
        kept = [part for part in logits if part is not None]
        each = (torch.cat([part[row] for part in kept]).float() for row in range(len(rows)))  # [T, V], a row at a time
        return [-float(torch.nn.functional.cross_entropy(one, wanted)) for one in each]


class CrossEncoder:
    """A cross-encoder of sentence-transformers."""

    def __init__(self, model: str, device: str) -> None:
        """Raises MissingExtraError and ConfigError."""
        self.model: Any = load_cross_encoder(model, device)

    def scores(self, question: str, passages: list[str]) -> list[float]:
        """The model's score of each pair; of several labels the last one's, which is the relevant one."""
        values = torch.as_tensor(self.model.predict([(question, p) for p in passages], show_progress_bar=False))
        return [float(v) for v in (values if values.ndim == 1 else values[:, -1])]
