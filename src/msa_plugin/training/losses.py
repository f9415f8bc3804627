"""What training minimises: the response's cross entropy, the contrastive routing loss, and a teacher's similarities.

Routing losses take the scores s [n] of one row's documents in one router layer, divided by the temperature, and which
of them are positive. Variants are named as the reference names them (golden spec section 7); DECOUPLE is the paper's
equation 5 with the minus sign that it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from msa_plugin.errors import ConfigError, TrainingError

Method = Literal["INFONCE", "INFONCE_DECOUPLE", "INFONCE_FOCAL", "INFONCE_DECOUPLE_FOCAL", "BCE"]
METHODS: tuple[Method, ...] = get_args(Method)
IGNORED = -100  # label of a token that is not learnt
GAMMA = 2.0  # of focal weights
TEMPERATURES = (0.001, 0.5)


def token_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross entropy of `logits` [B, K, V] where `wanted` int64 [B, K] is not IGNORED.

    Raises TrainingError when there is nothing to learn.
    """
    kept = wanted != IGNORED
    if not bool(kept.any()):
        raise TrainingError("no token of this batch has a label: a sample needs a response")
    return F.cross_entropy(logits[kept].float(), wanted[kept])


def routing_loss(
    scores: Tensor,
    positives: Tensor,
    method: Method = "INFONCE_DECOUPLE",
    *,
    temperature: float = 0.1,
    bias: Tensor | float = 0.0,
) -> Tensor:
    """The loss of one row in one layer: `scores` [n] of its documents, `positives` bool [n].

    INFONCE: positives compete with each other; DECOUPLE: each only with the negatives; FOCAL: terms weigh
    (1 - probability) ** 2. BCE: every document by itself, `bias` added to its score, no temperature.
    The exponent of the reference's DECOUPLE_FOCAL is the number of positives, by mistake.
    Raises TrainingError without a positive document, ConfigError for an unknown method.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown routing loss {method!r}; there are {', '.join(METHODS)}")
    if not bool(positives.any()):
        raise TrainingError("a routing loss needs a positive document among those that are scored")
    if method == "BCE":
        return F.binary_cross_entropy_with_logits(scores.float() + bias, positives.float())
    low, high = TEMPERATURES
    s = scores.float() / min(max(temperature, low), high)
    if "DECOUPLE" in method:
        against = torch.logsumexp(s.masked_fill(positives, -torch.inf), dim=0)
        terms = F.softplus(against - s[positives])
    else:
        terms = torch.logsumexp(s, dim=0) - s[positives]
    if "FOCAL" in method:
        terms = terms * (1 - torch.exp(-terms)) ** GAMMA
    return terms.mean()


def auxiliary_loss(
    scores: Mapping[int | str, Tensor],
    positives: Sequence[Tensor],
    method: Method = "INFONCE_DECOUPLE",
    *,
    temperature: float = 0.1,
    bias: Tensor | float = 0.0,
) -> Tensor:
    """Mean of `routing_loss` over router layers and rows; rows without a positive document are left out.

    `scores` [B, N + 1] by layer with column 0 unused, as `PackedPass` leaves them; `positives` bool [n] for each row's
    n documents. Raises TrainingError when no row has a positive document or a row has another number of documents.
    """
    terms = []
    for values in scores.values():
        for row, wanted in zip(values, positives, strict=True):
            own = row[1 : len(wanted) + 1]
            if len(own) < len(wanted) or not bool(torch.isfinite(row[1:]).sum() == len(wanted)):
                raise TrainingError(f"{len(wanted)} documents are labelled, the row scores another number of them")
            if bool(wanted.any()):
                terms.append(routing_loss(own, wanted.bool(), method, temperature=temperature, bias=bias))
    if not terms:
        raise TrainingError("no row of this batch has a positive document, so that routing has nothing to learn")
    return torch.stack(terms).mean()


def distillation_loss(
    scores: Tensor, teacher: Tensor, *, temperature: float = 0.05, teacher_temperature: float = 0.05
) -> Tensor:
    """Kullback-Leibler divergence of the router's softmax from the teacher's, row by row; both [B, N].

    A teacher's -inf leaves a passage out for that row.
    """
    absent = torch.isinf(teacher)
    target = (teacher.float() / teacher_temperature).softmax(dim=1)
    mine = (scores.float() / temperature).masked_fill(absent, -torch.inf).log_softmax(dim=1)
    return F.kl_div(mine.masked_fill(absent, 0.0), target, reduction="batchmean")
