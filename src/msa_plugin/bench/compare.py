"""`msa bench retrieval|qa`: systems head to head."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, Literal

from msa_plugin.bench.command import Command, Sizes, Voice, Words, option
from msa_plugin.bench.dialogues import SHOWN, by_kind
from msa_plugin.bench.driver import show
from msa_plugin.bench.judge import Judge
from msa_plugin.bench.report_rows import DEFAULT
from msa_plugin.bench.result import ResultRow
from msa_plugin.bench.runner import CompareConfig, RunOptions, compare
from msa_plugin.bench.store import Results
from msa_plugin.bench.systems.system_spec import behind, parse
from msa_plugin.errors import ConfigError

# Systems that need neither a download nor a second model, and what a first look wants to know.
QUICK: dict[str, tuple[str, ...]] = {
    "retrieval": (DEFAULT, "msa", "bm25", "dense-same-backbone"),
    "qa": (DEFAULT, "msa", "bm25", "closed-book"),
}
USUAL: dict[str, tuple[str, ...]] = {
    "retrieval": (DEFAULT, "msa", "bm25", "dense", "dense-same-backbone", "hybrid"),
    "qa": (DEFAULT, "msa", "bm25", "dense", "hybrid", "closed-book"),
}


class Comparing(RunOptions, Command):
    """What both commands take beside the run's own settings."""

    systems: str | None = option(
        None, "Names with commas between, such as msa,bm25,dense; a wrong one lists all.", "--systems", "-s"
    )
    prefilter: str | None = option(None, "Also run MSA behind this index, e.g. faiss:HNSW32@candidates=200.")
    quick: bool = option(False, "The sample corpus and few systems, in minutes.")
    dtype: str | None = option(None, "What models compute in: float32, bfloat16 or float16 [MSA: by the device].")

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
        rows = compared(out, config)
        if self.dialogues is not None:
            with Results(self.out, seed=self.seed) as results:
                for kind, system, count, means in by_kind(results, self.dialogues):
                    values = ", ".join(f"{metric} {value:.3f}" for metric, value in zip(SHOWN, means, strict=True))
                    out.say(f"{kind} ({count}): {system}: {values}")
        out.result([row.to_dict() for row in rows])


class QaCommand(Comparing):
    """Of several ways to read, each has a folder of its own in OUT.

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

    def configs(self) -> list[tuple[dict[str, str], CompareConfig]]:
        """A run for every way of reading, with what tells it from the others where there are several."""
        settings = {name: values for name in ("reading", "reader") if (values := getattr(self, name))}
        ways = [dict(zip(settings, chosen, strict=True)) for chosen in product(*settings.values())]
        more: dict[str, Any] = {"passages": self.passages, "generation": {"max_new_tokens": self.max_new_tokens}}
        prompt: dict[str, Any] = {} if self.context_tokens is None else {"context_tokens": self.context_tokens}
        found = []
        for way in ways:
            if len(ways) > 1:
                more["out"] = self.out / "-".join(way.values())
                more["cache"] = self.cache or self.out / "cache"
            found.append((way if len(ways) > 1 else {}, self.config("qa", {**prompt, **way}, **more)))
        return found

    def run(self, out: Voice) -> None:
        """Answer in every way."""
        judge = None if self.judge is None else Judge(self.judge, self.judge_model, self.judge_key_env)
        told = []
        for way, config in self.configs():
            rows = compared(out, config, judge, ", ".join(f"{name} {value}" for name, value in way.items()))
            told += [row.to_dict() | way for row in rows]
        out.result(told)


def compared(out: Voice, config: CompareConfig, judge: Judge | None = None, way: str = "") -> list[ResultRow]:
    """Run a configuration and show its tables, below the name of the `way` where there are several."""
    out.note(f"{', '.join(config.systems)}; results go to {config.out}; the same command goes on where one stopped")
    rows = compare(config, judge=judge)
    if way:
        out.say(way)
    show(out, config.out, rows)
    return rows
