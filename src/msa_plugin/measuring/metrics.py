"""What a ranking or an answer is worth, question by question; intervals, and whether two systems differ.

Rankings are measured by ir-measures (trec_eval's definitions), differences tested by scipy. Exact match and F1 follow
the evaluation of SQuAD (Rajpurkar et al. 2016).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from msa_plugin.data.datasets import Question
from msa_plugin.errors import ConfigError, optional_module

RETRIEVAL = ("nDCG@10", "R@2", "R@5", "R@10", "R@100", "RR@10", "AP")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CUTOFF = re.compile(r"@(\d+)")
_DRAWS = 1000


def within(metrics: Iterable[str], k: int) -> tuple[str, ...]:
    """Those metrics that the `k` best passages are enough for."""
    cutoffs = ((metric, _CUTOFF.search(metric)) for metric in metrics)
    return tuple(metric for metric, cutoff in cutoffs if cutoff is None or int(cutoff.group(1)) <= k)


def retrieval_scores(
    positives: Mapping[str, Mapping[str, int]],
    rankings: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = RETRIEVAL,
) -> dict[str, dict[str, float]]:
    """For each metric (in the notation of ir-measures) a value per question id of `positives`.

    `rankings` are passage ids, best first: their order counts, not scores. A question without a ranking gets 0.
    Raises MissingExtraError without ir-measures and ConfigError for a metric that it does not know.
    """
    measures = optional_module("ir_measures", 'metrics need ir-measures: pip install "msa-plugin[bench]"')
    try:
        parsed = {measures.parse_measure(name): name for name in metrics}
    except (NameError, ValueError) as error:
        raise ConfigError(f"unknown metric in {list(metrics)} ({error}); write nDCG@10, R@5, RR@10, AP ...") from error
    qrels = [measures.Qrel(q, i, grade) for q, grades in positives.items() for i, grade in grades.items()]
    run = [
        measures.ScoredDoc(q, passage, float(len(ranking) - place))
        for q, ranking in rankings.items()
        if q in positives
        for place, passage in enumerate(ranking)
    ]
    scores = {name: dict.fromkeys(positives, 0.0) for name in metrics}
    if run and qrels:
        for found in measures.iter_calc(list(parsed), qrels, run):
            scores[parsed[found.measure]][found.query_id] = float(found.value)
    return scores


def normalised(text: str) -> str:
    """Lower case, without punctuation, English articles and repeated blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(reply: str, answers: Sequence[str]) -> float:
    """1 if the reply is one of the answers, else 0."""
    return float(normalised(reply) in {normalised(a) for a in answers})


def f1(reply: str, answers: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall over the words of reply and answer."""
    return max((_overlap(normalised(reply).split(), normalised(a).split()) for a in answers), default=0.0)


def _overlap(reply: list[str], answer: list[str]) -> float:
    if not reply or not answer:
        return float(reply == answer)
    common = sum((Counter(reply) & Counter(answer)).values())
    return 2 * common / (len(reply) + len(answer))


def contains_answer(reply: str, answers: Sequence[str]) -> float:
    """1 if the words of some answer stand in the reply one after another, else 0."""
    words = f" {normalised(reply)} "
    return float(any(f" {a} " in words for a in map(normalised, answers) if a))


def question_scores(reply: str, read: Sequence[str], question: Question) -> dict[str, float]:
    """All of an answer's metrics; of its sources the share that is relevant, and of what is relevant the share read."""
    given, wanted = set(read), set(question.positives)
    right = len(given & wanted)
    return {
        "EM": exact_match(reply, question.answers),
        "F1": f1(reply, question.answers),
        "contains": contains_answer(reply, question.answers),
        "sources_precision": right / len(given) if given else 0.0,
        "sources_recall": right / len(wanted) if wanted else 0.0,
    }


def bootstrap(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Bounds of the 95 % interval of the mean, by drawing the questions 1,000 times with replacement.

    Raises ConfigError for no values.
    """
    if not len(values):
        raise ConfigError("an interval needs at least one value")
    data = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    portion = max(1, 10**6 // len(data))  # draws at a time, so that memory stays bounded
    sizes = [min(portion, _DRAWS - start) for start in range(0, _DRAWS, portion)]
    means = [data[generator.integers(0, len(data), (size, len(data)))].mean(axis=1) for size in sizes]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def p_value(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Two-sided p-value of the paired t-test that two systems are equal in the mean on the same questions.

    Where all differences are the same number, by which that test would divide by zero: the chance that as many fair
    signs agree, so that a handful of questions never looks certain.
    Raises MissingExtraError without scipy and ConfigError when the questions are not the same number.
    """
    if len(ours) != len(theirs):
        raise ConfigError(f"{len(ours)} and {len(theirs)} values cannot be compared question by question")
    control, treatment = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    differences = control - treatment
    if len(control) < 2 or not differences.any():
        return 1.0
    if np.ptp(differences) == 0:
        return 2.0 ** (1 - len(differences))
    statistics = optional_module("scipy.stats", 'significance needs scipy: pip install "msa-plugin[bench]"')
    return float(statistics.ttest_rel(control, treatment).pvalue)
