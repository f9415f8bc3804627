"""`msa bench retrieval|qa|report|paired`: systems head to head, and what is shown of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from msa_plugin.bench.base import ResultRow
from msa_plugin.bench.case import Case, Command, Row, Sizes, Voice, Words, aligned, option
from msa_plugin.bench.dialogues import SHOWN, by_kind
from msa_plugin.bench.driver import report
from msa_plugin.bench.judge import Judge
from msa_plugin.bench.packing import pack
from msa_plugin.bench.paired import paired
from msa_plugin.bench.recompute import recompute
from msa_plugin.bench.report import write_report
from msa_plugin.bench.runner import CompareConfig, RunOptions, compare
from msa_plugin.bench.store import NOTE, SKIPPED, Results
from msa_plugin.bench.systems.system_spec import behind, parse
from msa_plugin.errors import ConfigError

DEFAULT = "msa+lexical:1+titles+mentions"  # what a memory with the default adapter ranks by when nothing is said
# Systems that need neither a download nor a second model, and what a first look wants to know.
QUICK: dict[str, tuple[str, ...]] = {
    "retrieval": (DEFAULT, "msa", "bm25", "dense-same-backbone"),
    "qa": (DEFAULT, "msa", "bm25", "closed-book"),
}
USUAL: dict[str, tuple[str, ...]] = {
    "retrieval": (DEFAULT, "msa", "bm25", "dense", "dense-same-backbone", "hybrid"),
    "qa": (DEFAULT, "msa", "bm25", "dense", "hybrid", "closed-book"),
}
MAIN = {"retrieval": ("nDCG@10", "R@5", "R@10", "RR@10"), "qa": ("EM", "F1", "contains", "judge", "abstained")}
MEAN = "mean of sets"
Way: TypeAlias = tuple[
    tuple[str, str], ...
]  # values of the settings in which one run of a command differs from its others


class Comparing(RunOptions, Command):
    """What both commands take beside the run's own settings."""

    systems: str | None = option(
        None, "Names with commas between, such as msa,bm25,dense; a wrong one lists all.", "--systems", "-s"
    )
    prefilter: str | None = option(None, "Also run MSA behind this index, e.g. faiss:HNSW32@candidates=200.")
    quick: bool = option(False, "The sample corpus and few systems, in minutes.")
    dtype: str | None = option(None, "What MSA computes in: float32, bfloat16 or float16 [by the device].")

    def config(self, part: Literal["retrieval", "qa"], memory: Mapping[str, str], **more: Any) -> CompareConfig:
        """The run. Raises ConfigError."""
        if (self.data is None) != self.quick:
            raise ConfigError("give --data DIR, or --quick for the sample corpus; not both, and not neither")
        chosen = parse(self.systems) if self.systems else (QUICK if self.quick else USUAL)[part]
        chosen = (*chosen, *behind(chosen, self.prefilter))
        shared = {name: getattr(self, name) for name in RunOptions.model_fields}
        computing = {} if self.dtype is None else {"dtype": self.dtype}
        return CompareConfig(**{**shared, "part": part, "systems": chosen, "memory": {**computing, **memory}, **more})


class RankingCommand(Comparing):
    """Interrupted runs go on when the same command is given again.

    Example: msa bench retrieval --quick --out results
    """

    k: int | None = option(None, "Passages ranked for each question (100).", "-k", gt=0)
    dialogues: Literal["turns", "sessions"] | None = option(
        None, "Take --data as conversations: turns or sessions are found."
    )

    def run(self, out: Voice) -> None:
        """Rank; of dialogues also the questions of all together, kind by kind."""
        config = self.config("retrieval", {}, k=self.k or (20 if self.quick else 100), dialogues=self.dialogues)
        show(out, {(): config})
        if self.dialogues is not None:
            with Results(self.out, seed=self.seed) as results:
                for kind, system, count, means in by_kind(results, self.dialogues):
                    values = ", ".join(f"{metric} {value:.3f}" for metric, value in zip(SHOWN, means, strict=True))
                    out.say(f"{kind} ({count}): {system}: {values}")


class QaCommand(Comparing):
    """Of several ways to read, each has a folder of its own in OUT, and one table shows all of them.

    Interrupted runs go on when the same command is given again.

    Example: msa bench qa --quick --out results
    """

    passages: Sizes = option("1,5,10", "How many of the passages found are read.")
    judge: str | None = option(None, "An OpenAI-compatible endpoint that grades, http(s)://.../v1")
    judge_model: str = option("default", "The model's name there.")
    judge_key_env: str = option("OPENAI_API_KEY", "The environment variable that holds its key.")
    max_new_tokens: int = option(32, "At most this many tokens of answer.", gt=0)
    context_tokens: int | None = option(None, "Tokens of passages that fit into the prompt.")
    reading: Words = option("auto", "How answers read memory: auto, text, latent or kv; or several, with commas.")
    reader: Words = option(
        None, "Who answers: auto (the adapter's reader, if it has one) or stock; or both, with a comma."
    )

    def configs(self) -> dict[Way, CompareConfig]:
        """A run for every way of reading; its folder lies in OUT where there are several."""
        given = {"reading": self.reading, "reader": self.reader}
        settings = {name: values for name, values in given.items() if values}
        ways = [tuple(zip(settings, chosen, strict=True)) for chosen in product(*settings.values())]
        more: dict[str, Any] = {"passages": self.passages, "generation": {"max_new_tokens": self.max_new_tokens}}
        prompt: dict[str, Any] = {} if self.context_tokens is None else {"context_tokens": self.context_tokens}
        found = {}
        for way in ways:
            if len(ways) > 1:
                more["out"] = self.out / "-".join(value for _, value in way)
                more["cache"] = self.cache or self.out / "cache"
            found[way] = self.config("qa", {**prompt, **dict(way)}, **more)
        return found

    def run(self, out: Voice) -> None:
        """Answer in every way."""
        judge = None if self.judge is None else Judge(self.judge, self.judge_model, self.judge_key_env)
        show(out, self.configs(), judge)


class Report(Command):
    """Nothing else is read.

    Example: msa bench report results --recompute
    """

    out: Path = option(..., "The folder of a run.", argument=True)
    recompute: bool = option(False, "First rebuild the rows from the question files.")
    pack: Path | None = option(
        None, "Report on a small copy made in this folder: what tables need, no texts, no rankings."
    )

    def run(self, out: Voice) -> None:
        """Write it."""
        if not (self.out / "results.jsonl").is_file() and not (self.out / "questions").is_dir():
            raise ConfigError(f"{self.out} holds no results; run `msa bench retrieval|qa ... --out {self.out}` first")
        rebuilt = recompute(self.out) if self.recompute else None
        if rebuilt is not None:
            out.note(f"{rebuilt} rows rebuilt from what happened to each question")
        path = write_report(self.out if self.pack is None else pack(self.out, self.pack))
        out.say(f"report: {path}")
        out.result({"report": str(path), "recomputed": rebuilt})


class PairedRows(Case):
    """Means over sets, 95 % intervals, p of a paired t-test.

    Example: msa bench paired results --system bm25
    """

    columns: ClassVar = {
        "sets": "{group}",
        "less that of": "{over}",
        "": "{ours:.3f} - {theirs:.3f} = {difference:+.3f}",
        "95 %": "{low:+.3f} to {high:+.3f}",
        "p": "{p:.3f}",
        "questions": "{questions}",
        "of sets": "{sets}",
    }
    out: Path = option(..., "The folder of a retrieval run.", argument=True)
    system: str = option(DEFAULT, "What the others are compared with [a memory as it comes].")
    sets: Words = option(None, "Only these data sets of the run, separated by commas.")
    metric: str = option("nDCG@10", "nDCG@10, R@2, R@5, R@10, RR@10 or AP.")

    def about(self) -> str:
        """What the rows are."""
        return f"{self.metric} of {self.system} less that of others"

    def rows(self) -> Iterator[Row]:
        """One row for each group of sets and other system."""
        yield from (row._asdict() for row in paired(self.out, self.system, self.metric, self.sets))


def show(out: Voice, configs: Mapping[Way, CompareConfig], judge: Judge | None = None) -> None:
    """Run every configuration and show all of them; the keys say how they differ."""
    found: dict[Way, list[ResultRow]] = {}
    for way, config in configs.items():
        out.note(f"{', '.join(config.systems)}; results go to {config.out}; the same command goes on where one stopped")
        found[way] = compare(config, judge=judge)
    out.say(table(found, config.part))
    several = len(found) > 1
    for way, row in ((way, row) for way, rows in found.items() for row in rows if row.metric in (SKIPPED, NOTE)):
        of = " on ".join(name for name in (row.system, row.dataset) if name)
        which = f" ({', '.join(' '.join(pair) for pair in way)})" if several else ""
        out.say(f"{row.metric}: {of}: {row.settings['reason']}{which}")
    for config in configs.values():
        report(out, config.out)
    out.result([row.to_dict() | (dict(way) if several else {}) for way, rows in found.items() for row in rows])


def table(found: Mapping[Way, Iterable[ResultRow]], part: str) -> str:
    """A line per way, data set, system and number of passages, and the means over data sets where there are several."""
    wanted = (*MAIN[part], "seconds")
    lines: dict[tuple[str, ...], dict[str, float]] = {}
    means: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for way, rows in found.items():
        ways = tuple(value for _, value in way) if len(found) > 1 else ()
        for row in rows:
            if row.part == part and row.metric in wanted:
                last = (str(row.settings.get("passages", "")),) if part == "qa" else ()
                lines.setdefault((*ways, row.dataset, row.system, *last), {})[row.metric] = row.value
                means.setdefault((*ways, MEAN, row.system, *last), {}).setdefault(row.metric, []).append(row.value)
    sets = max((len(v) for values in means.values() for v in values.values()), default=0)
    for name, values in means.items():
        whole = {metric: sum(v) / len(v) for metric, v in values.items() if len(v) == sets}
        if sets > 1 and whole:
            lines[name] = whole
    shown = [m for m in wanted if any(m in values for values in lines.values())]
    ways = tuple(name for name, _ in next(iter(found))) if len(found) > 1 else ()
    heads = (*ways, "data set", "system", *(("passages",) if part == "qa" else ()))
    return aligned([*heads, *shown], [[*name, *(_shown(m, values) for m in shown)] for name, values in lines.items()])


def _shown(metric: str, values: Mapping[str, float]) -> str:
    if metric not in values:
        return "-"
    return f"{values[metric]:.4f}" if metric == "seconds" else f"{values[metric]:.3f}"
