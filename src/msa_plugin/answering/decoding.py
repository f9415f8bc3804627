"""Decoding: from the logits of a prefill to text, for a batch of rows, one token a step.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from msa_plugin.answering.copying import Copied, constrained
from msa_plugin.answering.repetition import Repetition
from msa_plugin.backbone.attention import ForwardState
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.cancellation import check_cancelled
from msa_plugin.config import GenerationConfig

_OPEN = ",;: \t\n"  # a text that is cut does not end with these


class TokenSampler:
    """Greedy at temperature 0, otherwise nucleus sampling with a generator for each row (reproducible by seed).

    Rows do not share a generator, so that a question gets the same answer alone and in a batch.
    """

    def __init__(self, config: GenerationConfig, rows: int) -> None:
        """A config without a seed draws one for each row from the operating system's entropy."""
        self.config = config
        self.generators = [torch.Generator() for _ in range(rows)]
        for generator in self.generators:
            if config.seed is None:
                generator.seed()
            else:
                generator.manual_seed(config.seed)

    def pick(self, logits: Tensor) -> list[int]:
        """Next token id of each row of `logits` [B, V]."""
        if self.config.temperature == 0.0:
            return [int(i) for i in logits.argmax(dim=-1)]
        # From the largest logit down, so that a tiny temperature gives -inf and not NaN.
        below = logits.double().cpu() - logits.double().cpu().amax(dim=-1, keepdim=True)
        probabilities = (below / self.config.temperature).softmax(dim=-1)
        ordered, indices = probabilities.sort(dim=-1, descending=True)
        # A token is kept while the mass before it is below top_p, so that the most likely one always is.
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self.config.top_p, 0.0)
        drawn = [torch.multinomial(p, 1, generator=g) for p, g in zip(ordered, self.generators, strict=True)]
        return [int(row[i]) for row, i in zip(indices, drawn, strict=True)]


class TextStream:
    """One row's text as it grows: whole characters only, without outer blanks.

    It is cut before the first stop sequence, and where it began to repeat itself (`Repetition`). `finish` says what
    ended it: `stop` (such a sequence, or the model), `repetition` or `length`; "" as long as it goes on.
    Text that might still turn into a stop sequence, repeat itself, or turn out to be the blanks at the end, is held
    back until it is decided; so the pieces add up to `text`.
    """

    def __init__(self, backbone: Backbone, stop: Sequence[str] = (), repetition: int = 0) -> None:
        """`stop` strings are not part of the text; `repetition` as in `GenerationConfig`."""
        self._backbone, self._stop = backbone, tuple(stop)
        self._repetition = Repetition(repetition)
        self._ids: list[int] = []
        self.text = ""
        self._sent = 0
        self.finish = ""

    @property
    def tokens(self) -> int:
        """Tokens taken so far."""
        return len(self._ids)

    def push(self, token: int) -> str:
        """Take one more token; returns the text that is now certain."""
        self._ids.append(token)
        whole = self._backbone.detokenize(self._ids)
        found = [at for at in (whole.find(s) for s in self._stop) if at >= 0]
        if found:
            return self._finish("stop", whole[: min(found)])
        whole = whole.rstrip("\ufffd")  # what an unfinished character decodes to until its last byte arrives
        self._repetition.push(whole)
        cut = self._repetition.found()
        if cut is not None:
            return self._finish("repetition", whole[:cut].rstrip(_OPEN))
        self.text = whole.strip()
        return self._send(whole[: self._certain(whole)].strip())

    def end(self, reason: str) -> str:
        """The rest of the text, when no token will follow; `reason` is why, `stop` or `length`. Once is enough."""
        if self.finish:
            return ""
        cut = self._repetition.found(cut_off=True) if reason == "length" else None
        if cut is None:
            return self._finish(reason, self.text)
        return self._finish("repetition", self._backbone.detokenize(self._ids)[:cut].rstrip(_OPEN))

    def _finish(self, reason: str, text: str) -> str:
        self.finish, self.text = reason, text.strip()
        return self._send(self.text)

    def _certain(self, whole: str) -> int:
        end = len(whole) - self._repetition.suspect
        if self._repetition.least:  # what was sent must not end with a comma, should a repetition follow
            end = len(whole[:end].rstrip(_OPEN))
        for stop in self._stop:
            for size in range(min(len(stop) - 1, end), 0, -1):
                if whole.endswith(stop[:size], 0, end):
                    end -= size
                    break
        return end

    def _send(self, certain: str) -> str:
        piece = certain[self._sent :]
        self._sent = max(self._sent, len(certain))
        return piece


def decode(
    backbone: Backbone,
    state: ForwardState,
    logits: Tensor,
    positions: Tensor,
    streams: Sequence[TextStream],
    config: GenerationConfig,
    copies: Sequence[Copied | None] = (),
) -> Iterator[tuple[int, str]]:
    """Decode after a prefill until every row has ended; yields (row, new text) as text becomes certain.

    `logits` [B, V] of each row's last token, `positions` [B] of the next one. A row that has ended keeps being fed
    its last token, masked, so that the others can go on. Routing does not happen here (golden spec section 5).
    With `copies` a row writes what its own allows, and one without does not write.
    """
    sampler = TokenSampler(config, len(streams))
    ends = backbone.end_ids
    alive = [copy is not None for copy in copies] or [True] * len(streams)
    for step in range(config.max_new_tokens):
        tokens = sampler.pick(constrained(logits, copies, ends))
        for row, token in enumerate(tokens):
            if not alive[row]:
                continue
            if copies and (copy := copies[row]) is not None and token not in ends:
                copy.take(token)
            piece = streams[row].end("stop") if token in ends else streams[row].push(token)
            alive[row] = not streams[row].finish
            if piece:
                yield row, piece
        if not any(alive) or step + 1 == config.max_new_tokens:
            break
        mask = torch.tensor(alive, device=backbone.device)[:, None]
        ids = torch.tensor(tokens, device=backbone.device)[:, None]
        out = backbone.run(state, ids, mask, (positions + step)[:, None])
        assert out is not None
        logits = out[:, -1]
        check_cancelled()
    for row, stream in enumerate(streams):
        piece = stream.end("length") if alive[row] else ""
        if piece:
            yield row, piece
