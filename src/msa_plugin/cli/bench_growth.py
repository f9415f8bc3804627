"""`msa bench scale|latency|needle`: what happens when the memory grows."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msa_plugin.cli.options import AdapterPath, Json, Model
from msa_plugin.cli.output import Output
from msa_plugin.errors import ConfigError, MissingExtraError, MSAError

if TYPE_CHECKING:
    from msa_plugin.bench.base import Dataset, ResultRow
    from msa_plugin.bench.growth import Banks
    from msa_plugin.bench.store import Results
    from msa_plugin.bench.watch import Watch
    from msa_plugin.types import Document

Data = Annotated[
    Path | None,
    typer.Option("--data", "-d", help="A data set, or a folder of data sets; the sample corpus when left out."),
]
Distractors = Annotated[Path | None, typer.Option(help="Folder of *.jsonl[.gz] with passages to grow the memory with.")]
Systems = Annotated[str, typer.Option("--systems", "-s", help="Names of systems, separated by commas.")]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", help="Folder for results and the report; what it holds is not measured again."),
]
Cache = Annotated[
    Path | None, typer.Option(help="Folder for encoded passages and indexes, to share among runs [OUT/cache].")
]
Questions = Annotated[int, typer.Option(help="Questions of each data set, at most.", min=1)]
Sizes = Annotated[str, typer.Option(help="Sizes of the memory in tokens, such as 16K,64K,1M.")]
Seed = Annotated[int, typer.Option(help="Seed of what is sampled.")]
Budget = Annotated[
    float | None,
    typer.Option(help="Minutes to ask in all, without indexing; fewer questions are asked, evenly.", min=0.01),
]
Prefilter = Annotated[
    str | None, typer.Option(help="Also measure MSA behind this index, e.g. faiss:HNSW32@candidates=200 or coarse:128.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget earlier results of this part in OUT.")]
NEW_TOKENS = 32
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def register(app: typer.Typer) -> None:
    """Add the commands to `msa bench`."""
    app.command()(scale)
    app.command()(latency)
    app.command()(needle)


def scale(
    out: Out,
    data: Data = None,
    distractors: Distractors = None,
    systems: Systems = "msa,msa-interleave,bm25,dense,hybrid",
    sizes: Sizes = "16K,64K,256K,1M,4M,10M",
    questions: Questions = 100,
    answers: Annotated[int, typer.Option(help="So many of the questions are also answered.", min=0)] = 0,
    passages: Annotated[int, typer.Option(help="Passages read for an answer.", min=1)] = 5,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Fill sizes that the texts do not reach with made-up keys (MSA only).")
    ] = False,
    prefilter: Prefilter = None,
    budget: Budget = None,
    seed: Seed = 0,
    cache: Cache = None,
    fresh: Fresh = False,
    model: Model = None,
    adapter: AdapterPath = None,
    as_json: Json = False,
) -> None:
    """The same questions against memories grown with distractors: quality and latency at each size.

    Example: msa bench scale --data DATA/dev/nq --distractors DATA/distractors --out results
    """
    from msa_plugin.bench.scale import PART, Scale, ScaleSettings

    settings = ScaleSettings(
        systems=parse_names(systems),
        sizes=parse_sizes(sizes),
        questions=questions,
        answers=answers,
        passages=passages,
        seed=seed,
        synthetic=synthetic,
        prefilter=prefilter,
        budget=_share(budget, data),
    )
    _check(data, distractors)
    told = {"answers": answers, "passages": passages, **_told(settings, distractors)}
    with _running(PART, Output(as_json), out, cache, model, adapter, told, fresh=fresh, seed=seed) as run:
        for dataset in run.datasets(data, PART):
            more = run.distractors(distractors, max(settings.sizes))
            Scale(settings, run.results, run.banks, run.cache, generation=run.generation, on_step=run.step).run(
                dataset, more
            )


def latency(
    out: Out,
    data: Data = None,
    distractors: Distractors = None,
    systems: Systems = "msa-interleave,iterative:dense,iterative:bm25",
    sizes: Sizes = "16K,64K,256K,1M",
    questions: Questions = 20,
    hops: Annotated[int, typer.Option(help="Rounds of searching, for every system alike.", min=1)] = 2,
    per_round: Annotated[int, typer.Option(help="Passages that a round may add to what is read.", min=1)] = 3,
    repeats: Annotated[int, typer.Option(help="How often each question is asked, systems in turns.", min=1)] = 3,
    peak: Annotated[bool, typer.Option(help="Measure peak memory of each system in a process of its own.")] = True,
    prefilter: Prefilter = None,
    budget: Budget = None,
    seed: Seed = 0,
    cache: Cache = None,
    fresh: Fresh = False,
    model: Model = None,
    adapter: AdapterPath = None,
    as_json: Json = False,
) -> None:
    """Seconds by hop and stage as the memory grows, and what memory and indexing cost, against iterative RAG.

    Example: msa bench latency --data DATA/dev/hotpotqa --distractors DATA/distractors --out results
    """
    from msa_plugin.bench.indexing import TextSource
    from msa_plugin.bench.latency import PART, Latency, LatencySettings

    settings = LatencySettings(
        systems=parse_names(systems),
        sizes=parse_sizes(sizes),
        questions=questions,
        hops=hops,
        per_round=per_round,
        repeats=repeats,
        seed=seed,
        prefilter=prefilter,
        budget=_share(budget, data),
    )
    _check(data, distractors)
    told = {"hops": hops, "per_round": per_round, "repeats": repeats, **_told(settings, distractors)}
    with _running(PART, Output(as_json), out, cache, model, adapter, told, fresh=fresh, seed=seed) as run:
        source = TextSource(model, adapter, run.banks.config) if peak else None
        for dataset in run.datasets(data, PART):
            more = run.distractors(distractors, max(settings.sizes))
            measured = Latency(
                settings,
                run.results,
                run.banks,
                run.cache,
                generation=run.generation,
                on_step=run.step,
                source=source,
            )
            measured.run(dataset, more)


def needle(
    out: Out,
    distractors: Distractors = None,
    systems: Systems = "msa,msa-interleave,bm25,dense",
    lengths: Annotated[str, typer.Option(help="Tokens of the haystacks, such as 4K,16K,64K.")] = "4K,16K,64K",
    depths: Annotated[int, typer.Option(help="Depths of the needles, evenly from first to last.", min=1)] = 5,
    tasks: Annotated[str, typer.Option(help="Names of tasks, separated by commas; all when left out.")] = "",
    samples: Annotated[int, typer.Option(help="Haystacks for each task, length and depth.", min=1)] = 1,
    answers: Annotated[bool, typer.Option(help="Also answer, not only find.")] = True,
    seed: Seed = 0,
    cache: Cache = None,
    fresh: Fresh = False,
    model: Model = None,
    adapter: AdapterPath = None,
    as_json: Json = False,
) -> None:
    """Needles in a haystack: eight tasks at lengths and depths, a heat map per system.

    Example: msa bench needle --systems msa,bm25 --lengths 4K,16K --out results
    """
    from msa_plugin.bench.needle import TASKS, NeedleConfig, run
    from msa_plugin.bench.watch import Watch

    said = Output(as_json)
    config = NeedleConfig(
        systems=parse_names(systems),
        out=out,
        lengths=parse_sizes(lengths),
        depths=tuple(n / (depths - 1) for n in range(depths)) if depths > 1 else (0.5,),
        tasks=tuple(name.strip() for name in tasks.split(",")) if tasks else tuple(TASKS),
        samples=samples,
        answers=answers,
        seed=seed,
        distractors=distractors,
        model=model,
        adapter=adapter,
        fresh=fresh,
        cache=cache,
    )
    said.note(f"loading {model or 'the default backbone'} ...")
    with Watch(sys.stderr) as watch:
        rows = run(config, on_step=watch.step)
    _report(said, out, rows)


def _share(budget: float | None, data: Path | None) -> float | None:
    """Seconds for each data set, of so many minutes for all."""
    from msa_plugin.bench.datasets import find_datasets

    return None if budget is None else 60 * budget / (1 if data is None else len(find_datasets(data)))


def _check(data: Path | None, distractors: Path | None) -> None:
    """A mistyped path is told before a backbone is loaded or anything is written."""
    from msa_plugin.bench.datasets import find_datasets, load_distractors

    if data is not None:
        find_datasets(data)
    if distractors is not None and next(load_distractors(distractors, 1), None) is None:
        raise ConfigError(f"{distractors.name} holds no passages to grow the memory with")


def _told(settings: Any, distractors: Path | None) -> dict[str, Any]:
    """What runs must share for their rows to stand side by side; systems, data sets and larger sizes may be added."""
    return {
        "first_size": settings.sizes[0],
        "questions": settings.questions,
        "seed": settings.seed,
        "budget_seconds": settings.budget,
        "distractors": None if distractors is None else distractors.resolve().name,
    }


def parse_names(text: str) -> tuple[str, ...]:
    """Names of systems separated by commas. Raises ConfigError for unknown or repeated ones, and for none."""
    from msa_plugin.bench.systems import parse

    return parse(text)


def parse_sizes(text: str) -> tuple[int, ...]:
    """Numbers of tokens separated by commas, ascending; K, M and G stand for powers of 1,024.

    Raises ConfigError for anything else.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*([KMG]?)\s*", part.upper())
        if match is None or int(match[1]) == 0:
            raise ConfigError(f"{part!r} is not a size in tokens; write 16K, 1M or 20000")
        found.append(int(match[1]) * _UNITS[match[2]])
    return tuple(sorted(set(found)))


class _Run:
    """What the commands share: results, banks and caches of one output folder, and how far things are."""

    def __init__(self, results: Results, banks: Banks, cache: Path, watch: Watch, note: Callable[[str], None]) -> None:
        self.results, self.banks, self.cache, self.note = results, banks, cache, note
        self.step = watch.step
        self.generation = {"max_new_tokens": NEW_TOKENS}

    def datasets(self, data: Path | None, part: str) -> Iterator[Dataset]:
        """The data sets in a folder, or the sample corpus; one of several that cannot be read is skipped."""
        from msa_plugin.bench.datasets import dataset_hash, find_datasets, load_dataset, sample_dataset

        paths = [None] if data is None else find_datasets(data)
        for path in paths:
            try:
                dataset = sample_dataset() if path is None else load_dataset(path)
            except MSAError as error:
                if path is None or len(paths) == 1:
                    raise
                self.note(f"{path.name} is left out: {error}")
                self.results.skip(part, path.resolve().name, "", str(error).replace(str(path), path.name))
                continue
            self.results.describe(dataset.name, {"hash": dataset_hash(dataset)})
            self.note(f"{dataset.name}: {len(dataset.documents):,} passages, {len(dataset.questions):,} questions")
            yield dataset

    def distractors(self, folder: Path | None, tokens: int) -> Iterator[Document]:
        """Passages from `folder`, at least `tokens` tokens of them if it has as many; none without a folder."""
        from msa_plugin.bench.datasets import load_distractors

        if folder is None:
            return iter(())
        # By the rule of thumb for tokens; the plan stops taking them when its own count is reached.
        return load_distractors(folder, 2 * tokens)


@contextmanager
def _running(
    part: str,
    out: Output,
    folder: Path,
    cache: Path | None,
    model: str | None,
    adapter: Path | None,
    told: dict[str, Any],
    *,
    fresh: bool,
    seed: int,
) -> Iterator[_Run]:
    """Open everything, let the body measure, and report; what is measured is kept whatever happens."""
    from msa_plugin.backbone.backbone import Backbone
    from msa_plugin.bench.growth import BANKS, Banks
    from msa_plugin.bench.store import Results
    from msa_plugin.bench.watch import Watch
    from msa_plugin.bench.workspaces import made_with
    from msa_plugin.config import MemoryConfig
    from msa_plugin.engine.adapters import find_adapter

    config = MemoryConfig()
    cache = cache or folder / "cache"
    with Results(folder, seed=seed) as results, Watch(sys.stderr) as watch:
        results.claim()
        out.note(f"loading {model or 'the default backbone'} ...")
        backbone = Backbone.load(model, device=config.device, dtype=config.dtype)
        chosen = find_adapter(backbone, adapter)
        results.configure(part, {**told, "made_with": made_with(backbone, chosen, config)}, fresh=fresh)
        yield _Run(results, Banks(cache / BANKS, backbone, chosen, config), cache, watch, out.note)
        rows = [row for row in results.rows() if row.part in (part, "cost")]
    _report(out, folder, rows)


def _report(out: Output, folder: Path, rows: Sequence[ResultRow]) -> None:
    from msa_plugin.bench.report import table, write_report

    for row in rows:
        if row.metric == "note":
            out.say(f"note: {row.dataset}: {row.settings['reason']}")
    out.say(table(rows))
    try:
        out.say(f"report: {write_report(folder)}")
    except MissingExtraError as error:
        out.note(f"no report: {error}")
    out.result([row.to_dict() for row in rows])
