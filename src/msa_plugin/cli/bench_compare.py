"""`msa bench retrieval|qa|report`: systems head to head, and what is shown of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from msa_plugin.cli.bench_growth import parse_sizes
from msa_plugin.cli.options import AdapterPath, Json, Model, word_of
from msa_plugin.cli.output import Output
from msa_plugin.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from msa_plugin.bench.base import ResultRow
    from msa_plugin.bench.judge import Judge
    from msa_plugin.bench.runner import CompareConfig

Part = Literal["retrieval", "qa"]
Way: TypeAlias = tuple[tuple[str, str], ...]  # settings in which one run of a command differs from its others
MEAN = "mean of sets"
Data = Annotated[
    Path | None,
    typer.Option("--data", "-d", help="A data set, or a folder of them: corpus, queries, qrels as BEIR lays them out."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for results, caches and the report.")]
Systems = Annotated[
    str | None,
    typer.Option("--systems", "-s", help="Names with commas between, such as msa,bm25,dense; a wrong one lists all."),
]
Distractors = Annotated[
    Path | None,
    typer.Option(help="Folder of *.jsonl[.gz] with passages to add to every corpus; --added says how many."),
]
Added = Annotated[str | None, typer.Option(help="Tokens of these passages that are added, such as 1M.")]
Dtype = Annotated[str | None, typer.Option(help="What MSA computes in: float32, bfloat16 or float16 [by the device].")]
Cache = Annotated[
    Path | None, typer.Option(help="Folder for encoded passages and indexes, to share among runs [OUT/cache].")
]
Budget = Annotated[
    float | None, typer.Option(help="Minutes to find and answer in all, without indexing; questions are sampled.")
]
Prefilter = Annotated[
    str | None, typer.Option(help="Also run MSA behind this index, e.g. faiss:HNSW32@candidates=200.")
]
Questions = Annotated[int | None, typer.Option(help="At most this many questions of each data set.", min=1)]
Seed = Annotated[int, typer.Option(help="Decides which questions are sampled.")]
Batch = Annotated[int, typer.Option(help="Questions asked at once.", min=1)]
Sets = Annotated[str | None, typer.Option(help="Only these data sets of the folder, separated by commas.")]
Corpus = Annotated[
    int | None,
    typer.Option(
        help="At most this many passages of each data set: those that answer its questions (0: no others) and others.",
        min=0,
    ),
]
Others = Annotated[
    str, typer.Option(help="Which these others are: even (drawn evenly), or hard (BM25's best for the questions).")
]
Quick = Annotated[bool, typer.Option("--quick", help="The sample corpus and few systems, in minutes.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget this folder's earlier results of this kind.")]


def one_of_units(given: str | None) -> str | None:
    """Check that dialogues are taken by turns or sessions."""
    return given if given is None else word_of("turns", "sessions")(given)


MAIN = {"retrieval": ("nDCG@10", "R@5", "R@10", "RR@10"), "qa": ("EM", "F1", "contains", "judge", "abstained")}


def register(app: typer.Typer) -> None:
    """Add the commands to `msa bench`."""
    app.command()(retrieval)
    app.command()(qa)
    app.command()(report)
    app.command()(paired)


def retrieval(
    out: Out = Path("bench-results"),
    data: Data = None,
    systems: Systems = None,
    prefilter: Prefilter = None,
    k: Annotated[int | None, typer.Option("-k", help="Passages ranked for each question (100).", min=1)] = None,
    budget: Budget = None,
    questions: Questions = None,
    seed: Seed = 0,
    batch: Batch = 8,
    model: Model = None,
    adapter: AdapterPath = None,
    quick: Quick = False,
    sets: Sets = None,
    corpus: Corpus = None,
    others: Others = "even",
    dialogues: Annotated[
        str | None,
        typer.Option(help="Take --data as conversations: turns or sessions are found.", callback=one_of_units),
    ] = None,
    distractors: Distractors = None,
    added: Added = None,
    dtype: Dtype = None,
    cache: Cache = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Rank passages with every system and compare: nDCG, recall, reciprocal rank, average precision, time.

    Interrupted runs go on when the same command is given again. Example: msa bench retrieval --quick --out results
    """
    settings = {"k": k, "budget_minutes": budget, "questions": questions, "seed": seed, "batch": batch, "fresh": fresh}
    more = {**_padding(distractors, added), "memory": {} if dtype is None else {"dtype": dtype}}
    where = {**_thinning(sets, corpus, others), **_where(model, adapter, cache)}
    where["dialogues"] = dialogues
    config = _config("retrieval", out, data, systems, prefilter, quick, {**settings, **more, **where})
    _run(Output(as_json), {(): config}, None)
    if config.dialogues is not None:
        _say_kinds(Output(as_json), config)


def qa(
    out: Out = Path("bench-results"),
    data: Data = None,
    systems: Systems = None,
    prefilter: Prefilter = None,
    passages: Annotated[str, typer.Option(help="How many of the passages found are read.")] = "1,5,10",
    budget: Budget = None,
    questions: Questions = None,
    seed: Seed = 0,
    batch: Batch = 8,
    judge: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible endpoint that grades, http(s)://.../v1")
    ] = None,
    judge_model: Annotated[str, typer.Option(help="The model's name there.")] = "default",
    judge_key_env: Annotated[str, typer.Option(help="The environment variable that holds its key.")] = "OPENAI_API_KEY",
    max_new_tokens: Annotated[int, typer.Option(help="At most this many tokens of answer.", min=1)] = 32,
    context_tokens: Annotated[int | None, typer.Option(help="Tokens of passages that fit into the prompt.")] = None,
    reading: Annotated[
        str, typer.Option(help="How answers read memory: auto, text, latent or kv; or several, separated by commas.")
    ] = "auto",
    reader: Annotated[
        str | None, typer.Option(help="Who answers: auto (the adapter's reader, if it has one) or stock; or both.")
    ] = None,
    model: Model = None,
    adapter: AdapterPath = None,
    quick: Quick = False,
    sets: Sets = None,
    corpus: Corpus = None,
    others: Others = "even",
    distractors: Distractors = None,
    added: Added = None,
    dtype: Dtype = None,
    cache: Cache = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Answer with every system, all by the same backbone: exact match, F1, sources, time; a judge where one is given.

    Of several ways to read, each has a folder of its own in OUT, and one table shows all of them.
    Interrupted runs go on when the same command is given again. Example: msa bench qa --quick --out results
    """
    memory: dict[str, Any] = {}
    if context_tokens is not None:
        memory["context_tokens"] = context_tokens
    if dtype is not None:
        memory["dtype"] = dtype
    settings = {"budget_minutes": budget, "questions": questions, "seed": seed, "batch": batch, "fresh": fresh}
    more = {"passages": _numbers(passages), "generation": {"max_new_tokens": max_new_tokens}}
    given = {**settings, **more, **_thinning(sets, corpus, others), **_padding(distractors, added)}
    ways = _ways({"reading": reading, "reader": reader})
    if len(ways) > 1:
        cache = cache or out / "cache"
    configs = {}
    for way in ways:
        place = out if len(ways) == 1 else out / "-".join(way.values())
        where = {"memory": {**memory, **way}, **_where(model, adapter, cache)}
        configs[tuple(way.items())] = _config("qa", place, data, systems, prefilter, quick, {**given, **where})
    _run(Output(as_json), configs, _judge(judge, judge_model, judge_key_env))


def report(
    out: Annotated[Path, typer.Argument(help="The folder of a run.")],
    recompute: Annotated[
        bool, typer.Option("--recompute", help="First rebuild the rows from the runs and question files.")
    ] = False,
    pack: Annotated[
        Path | None,
        typer.Option(help="Report on a small copy made in this folder: what tables need, no texts, no rankings."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write report.md, report.html and the plots of a run from its results alone.

    Example: msa bench report results --recompute
    """
    from msa_plugin.bench.packing import pack as packed
    from msa_plugin.bench.recompute import recompute as rebuild

    said = Output(as_json)
    if not (out / "results.jsonl").is_file() and not (out / "questions").is_dir():
        raise ConfigError(f"{out} holds no results; run `msa bench retrieval|qa ... --out {out}` first")
    rebuilt = rebuild(out) if recompute else None
    if rebuilt is not None:
        said.note(f"{rebuilt} rows rebuilt from what happened to each question")
    path = _report(out if pack is None else packed(out, pack))
    said.say(f"report: {path}")
    said.result({"report": str(path), "recomputed": rebuilt})


def paired(
    out: Annotated[Path, typer.Argument(help="The folder of a retrieval run.")],
    system: Annotated[
        str | None, typer.Option(help="What the others are compared with [a memory as it comes].")
    ] = None,
    sets: Annotated[str | None, typer.Option(help="Only these data sets of the run, separated by commas.")] = None,
    metric: Annotated[str, typer.Option(help="nDCG@10, R@2, R@5, R@10, RR@10 or AP.")] = "nDCG@10",
    as_json: Json = False,
) -> None:
    """One system against all others of a run, over the questions of all sets together: difference, interval, p.

    Example: msa bench paired results --system bm25
    """
    from msa_plugin.bench.paired import paired as compared
    from msa_plugin.bench.profiles import DEFAULT

    said, system = Output(as_json), system or DEFAULT
    only = None if sets is None else [name.strip() for name in sets.split(",") if name.strip()]
    rows = compared(out, system, metric, only)
    said.say(f"{metric} of {system} less that of others; means over sets, 95 % intervals, p of a paired t-test")
    width = max((len(row.over) for row in rows), default=0)
    for row in rows:
        said.say(
            f"{row.group:14} {row.over:{width}}  {row.ours:.3f} - {row.theirs:.3f} = {row.difference:+.3f} "
            f"({row.low:+.3f} to {row.high:+.3f}), p {row.p:.3f}, {row.questions} questions of {row.sets} sets"
        )
    said.result([row._asdict() for row in rows])


def _report(out: Path) -> Path:
    from msa_plugin.bench.report import write_report

    return write_report(out)


def _config(
    part: Part,
    out: Path,
    data: Path | None,
    systems: str | None,
    prefilter: str | None,
    quick: bool,
    given: dict[str, Any],
) -> CompareConfig:
    from msa_plugin.bench import profiles
    from msa_plugin.bench.runner import CompareConfig

    if (data is None) != quick:
        raise ConfigError("give --data DIR, or --quick for the sample corpus; not both, and not neither")
    chosen = {name: value for name, value in given.items() if value is not None}
    names = (profiles.QUICK if quick else profiles.USUAL)[part] if systems is None else _names(systems)
    chosen["systems"] = names if prefilter is None else (*names, *_behind(names, prefilter))
    if quick:
        return profiles.quick(part, out, **chosen)
    return CompareConfig(**{"part": part, "out": out, "data": data, **chosen})


def _behind(systems: Sequence[str], spec: str) -> list[str]:
    """The MSA systems among `systems`, behind an index."""
    from msa_plugin.retrieval.prefilter import PrefilterSpec

    index = PrefilterSpec.parse(spec)
    found = [f"{name}+{index}" for name in systems if name in ("msa", "msa-interleave")]
    if not found:
        raise ConfigError("--prefilter is for msa and msa-interleave; name one of them in --systems")
    return found


def _where(model: str | None, adapter: Path | None, cache: Path | None) -> dict[str, Any]:
    return {"model": model, "adapter": adapter, "cache": cache}


def _padding(folder: Path | None, added: str | None) -> dict[str, Any]:
    if (folder is None) != (added is None):
        raise ConfigError(
            "--distractors is a folder of passages, --added how many tokens of them; give both, or neither"
        )
    sizes = () if added is None else parse_sizes(added)
    if len(sizes) > 1:
        raise ConfigError("--added is one number of tokens; run the command once for each, into folders of their own")
    return {"distractors": folder, "added": sizes[0] if sizes else None}


def _thinning(sets: str | None, corpus: int | None, others: str) -> dict[str, Any]:
    names = None if sets is None else tuple(name.strip() for name in sets.split(",") if name.strip())
    return {"sets": names, "corpus": corpus, "others": others}


def _ways(given: Mapping[str, str | None]) -> list[dict[str, str]]:
    """Every combination of the values, separated by commas, of the settings of memory that are given."""
    values = {name: dict.fromkeys(v.strip() for v in text.split(",")) for name, text in given.items() if text}
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def _names(systems: str) -> tuple[str, ...]:
    from msa_plugin.bench.systems import parse

    return parse(systems)


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--passages must be positive numbers separated by commas, not {text!r}")
    return tuple(map(int, parts))


def _judge(url: str | None, model: str, key_env: str) -> Judge | None:
    from msa_plugin.bench.judge import Judge

    return None if url is None else Judge(url, model, key_env)


def _run(out: Output, configs: Mapping[Way, CompareConfig], judge: Judge | None) -> None:
    """Run every configuration and show all of them; the keys say how they differ."""
    from msa_plugin.bench.runner import compare
    from msa_plugin.bench.watch import Watch

    found: dict[Way, list[ResultRow]] = {}
    for way, config in configs.items():
        out.note(f"{', '.join(config.systems)}; results go to {config.out}; the same command goes on where one stopped")
        found[way] = compare(config, judge=judge, watch=Watch(sys.stderr))
    part = next(iter(configs.values())).part
    for line in _table(found, part):
        out.say(line)
    for way, row in ((way, row) for way, rows in found.items() for row in rows):
        if row.metric in ("skipped", "note"):
            of = " on ".join(name for name in (row.system, row.dataset) if name)
            out.say(f"{row.metric}: {of}: {row.settings['reason']}" + (f" ({_told(way)})" if len(found) > 1 else ""))
    try:
        for config in configs.values():
            out.say(f"report: {_report(config.out)}")
    except MissingExtraError as error:
        out.note(f"no report: {error}")
    out.result([row.to_dict() | (dict(way) if len(found) > 1 else {}) for way, rows in found.items() for row in rows])


def _say_kinds(out: Output, config: CompareConfig) -> None:
    """The questions of all dialogues together, kind by kind."""
    from msa_plugin.bench.dialogues import SHOWN, by_kind
    from msa_plugin.bench.store import Results

    assert config.dialogues is not None
    with Results(config.out, seed=config.seed) as results:
        for kind, system, count, means in by_kind(results, config.dialogues):
            values = ", ".join(f"{metric} {value:.3f}" for metric, value in zip(SHOWN, means, strict=True))
            out.say(f"{kind} ({count}): {system}: {values}")


def _told(way: Way) -> str:
    return ", ".join(f"{name} {value}" for name, value in way)


def _shown(metric: str, values: dict[str, float]) -> str:
    if metric not in values:
        return "-"
    return f"{values[metric]:.4f}" if metric == "seconds" else f"{values[metric]:.3f}"


def _table(found: Mapping[Way, Iterable[ResultRow]], part: Part) -> list[str]:
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
    names = (*ways, "data set", "system", *(("passages",) if part == "qa" else ()))
    grid = [(*names, *shown), *((*name, *(_shown(m, values) for m in shown)) for name, values in lines.items())]
    widths = [max(len(line[column]) for line in grid) for column in range(len(grid[0]))]
    left = len(ways) + 2
    return [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in grid
    ]
