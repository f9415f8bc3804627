"""`msa bench paired`: one system against all others of a run, question by question.

The report tests within each data set. Here all questions of several sets count together, so that a difference that
recurs is seen although no set alone has enough questions to tell it from chance.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from msa_plugin.bench.command import Command, Voice, Words, aligned, option
from msa_plugin.bench.report_rows import DEFAULT, Saved
from msa_plugin.bench.scoring import retrieval_values
from msa_plugin.bench.store import Results
from msa_plugin.errors import ConfigError
from msa_plugin.measuring import metrics

_SAMPLES = 2000


class Paired(NamedTuple):
    """`ours` and `theirs` are means over `sets` of means over questions, `difference` is ours less theirs.

    `low` and `high` bound its 95 % interval (questions drawn with replacement within each set), `p` is of the paired
    t-test over all `questions`. `group` says which sets these are.
    """

    group: str
    over: str
    sets: int
    questions: int
    ours: float
    theirs: float
    difference: float
    low: float
    high: float
    p: float


class PairedRows(Command):
    """Means over sets, 95 % intervals, p of a paired t-test.

    Example: msa bench paired results --system bm25
    """

    out: Path = option(..., "The folder of a retrieval run.", argument=True)
    system: str = option(DEFAULT, "What the others are compared with [a memory as it comes].")
    sets: Words = option(None, "Only these data sets of the run, separated by commas.")
    metric: str = option("nDCG@10", "nDCG@10, R@2, R@5, R@10, RR@10 or AP.")

    def run(self, out: Voice) -> None:
        """A line for each group of sets and other system."""
        out.note(f"{self.metric} of {self.system} less that of others")
        rows = paired(self.out, self.system, self.metric, self.sets)
        heads = ("sets", "less that of", "", "95 %", "p", "questions", "of sets")
        body = [
            (
                row.group,
                row.over,
                f"{row.ours:.3f} - {row.theirs:.3f} = {row.difference:+.3f}",
                f"{row.low:+.3f} to {row.high:+.3f}",
                f"{row.p:.3f}",
                f"{row.questions}",
                f"{row.sets}",
            )
            for row in rows
        ]
        out.say(aligned(heads, body))
        out.result([row._asdict() for row in rows])


def paired(
    out: Path, system: str, metric: str = "nDCG@10", sets: Collection[str] | None = None, seed: int = 0
) -> list[Paired]:
    """`system` against every other one of the run in `out`: over all sets, those of several hops, those without titles.

    With `sets` over these alone. Two systems are compared on the sets that both finished.
    Raises ConfigError for a system or a set that the run lacks.
    """
    results, saved = Results(out), Saved.read(out)
    values: dict[str, dict[str, Mapping[str, float]]] = {}
    for dataset in dict.fromkeys(name for name, _ in results.question_sets("retrieval")):
        found = retrieval_values(results, dataset)
        values[dataset] = {name: kept[metric] for (name, _), kept in found.items() if metric in kept}
    names = list(dict.fromkeys(name for kept in values.values() for name in kept))
    if system not in names:
        raise ConfigError(
            f"{system!r} was not asked for {metric} in {out.name}; there are {', '.join(names) or 'none'}"
        )
    if missing := sorted({*(sets or ())} - values.keys()):
        raise ConfigError(f"{out.name} has no data set {missing[0]!r}; there are {', '.join(values)}")
    groups = {"all": list(values), "multi-hop": saved.multi_hop(), "without titles": saved.untitled()}
    if sets is not None:
        groups = {"these": list(sets)}
    rows: list[Paired] = []
    for group, chosen in groups.items():
        for over in (name for name in names if name != system):
            both = [values[name] for name in chosen if {system, over} <= values.get(name, {}).keys()]
            rows += [_compared(group, over, [(kept[system], kept[over]) for kept in both], seed)] if both else []
    return rows


def _compared(
    group: str, over: str, pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], seed: int
) -> Paired:
    ours = [np.array(list(mine.values())) for mine, _ in pairs]
    theirs = [np.array([its[q] for q in mine]) for mine, its in pairs]
    low, high = _interval([a - b for a, b in zip(ours, theirs, strict=True)], seed)
    p = metrics.p_value(np.concatenate(ours).tolist(), np.concatenate(theirs).tolist())
    mine, its = (float(np.mean([one.mean() for one in some])) for some in (ours, theirs))
    return Paired(group, over, len(pairs), sum(map(len, ours)), mine, its, mine - its, low, high, p)


def _interval(differences: Sequence[NDArray[np.float64]], seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    means = [one[generator.integers(0, len(one), (_SAMPLES, len(one)))].mean(axis=1) for one in differences]
    low, high = np.percentile(np.mean(means, axis=0), [2.5, 97.5])
    return float(low), float(high)
