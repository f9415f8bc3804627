"""The report of a run folder, from its files alone: report.md, report.html and plots/*.png."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msa_plugin.bench import plots
from msa_plugin.bench import report_growth as growth
from msa_plugin.bench import report_quality as quality
from msa_plugin.bench.base import ResultRow
from msa_plugin.bench.page import page
from msa_plugin.bench.report_rows import Saved, distinct
from msa_plugin.bench.report_tables import (
    Cell,
    Column,
    Figure,
    Section,
    Table,
    clean,
    escaped,
    joined,
    markdown,
    number,
    text,
)
from msa_plugin.data.jsonl import write_atomic
from msa_plugin.errors import MissingExtraError

TITLE = "MSA and retrieval-augmented generation, head to head"
_CHAPTERS: dict[str, tuple[str, str, Callable[[Saved], list[Table]]]] = {
    "retrieval": ("Retrieval", "How well each system ranks the passages that a question needs.", quality.retrieval),
    "qa": ("Answers", "Every system answers with the same backbone, prompt, token budget and decoding.", quality.qa),
    "scale": (
        "Degradation",
        "The same questions while the memory is filled up with passages that have nothing to do with them.",
        growth.scale,
    ),
    "needle": ("Needles in a haystack", "Sentences hidden among filler, to be found and told.", growth.needle),
    "latency": ("Latency", "Where the time of a question goes.", growth.latency),
    "cost": ("Cost", "What it takes to index a corpus and to keep it searchable.", growth.cost),
}


def write_report(out: Path) -> Path:
    """Write report.md, report.html and plots/*.png into the run folder `out`; returns report.html.

    Raises ConfigError when the folder holds no results or they cannot be read. Without matplotlib there are no plots,
    and the report says so.
    """
    saved = Saved.read(out)
    found, refusal = _figures(saved)
    chapters = _chapters(saved, found, refusal)
    lead = _lead(saved)
    folder = out / "plots"
    folder.mkdir(exist_ok=True)
    for figure in (f for some in found.values() for f in some):
        (folder / figure.name).write_bytes(figure.png)
    raw = _raw(saved)
    write_atomic(out / "report.md", _markdown(lead, chapters, raw))
    write_atomic(out / "report.html", page(TITLE, lead, chapters, raw))
    return out / "report.html"


def table(rows: Iterable[ResultRow]) -> str:
    """The report's tables of these rows as plain text for a terminal; folded ones are left out."""
    saved = Saved.of(rows)
    tables = [t for _, _, make in _CHAPTERS.values() for t in make(saved) if not t.folded]
    return "\n\n".join(map(text, [*tables, *_skipped(saved)])) or "There are no results."


def _figures(saved: Saved) -> tuple[dict[str, list[Figure]], str]:
    try:
        return plots.figures(saved), ""
    except MissingExtraError as error:
        return {}, f"No plots: {error}"


def _chapters(saved: Saved, found: dict[str, list[Figure]], refusal: str) -> list[Section]:
    chapters = [Section("What was measured", tables=(*_corpora(saved), *_runs(saved)))]
    for part, (title, about, make) in _CHAPTERS.items():
        tables, figures = make(saved), found.get(part, [])
        if tables or figures:
            chapters.append(Section(title, (about,), tuple(tables), tuple(figures)))
    rest = [
        Section("Skipped", tables=tuple(_skipped(saved))),
        Section("Other measurements", tables=tuple(_others(saved))),
        Section("Notes", text=tuple(n for n in (*_notes(saved), refusal) if n)),
    ]
    return [*chapters, *(s for s in rest if s.tables or s.text)]


# Where it comes from


def _lead(saved: Saved) -> list[str]:
    """What a reader must know before the first number."""
    if not saved.rows:
        return ["This folder holds no finished measurements."]
    days = sorted({r.date[:10] for r in saved.rows if r.date})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else "an unknown date"
    commits = _values(r.commit for r in saved.rows)
    machines = _values(r.hardware for r in saved.rows)
    seeds = distinct(saved.rows, lambda r: r.seed)
    names = quality.datasets_of(saved.rows)
    one = (
        f"Measured on {when} at commit {joined(commits) or 'unknown'}, on {joined(machines) or 'an unknown machine'}, "
        f"with seed {joined(str(s) for s in seeds)}: {len(names)} data set{'s' * (len(names) != 1)}, "
        f"{len({r.system for r in saved.rows})} systems, {len(saved.rows):,} measurements."
    )
    runs = saved.origins()
    if len(runs) == 1:
        return [one, f"Command: {next(iter(runs)).command or 'unknown'}"]
    return [
        one,
        f"These rows come from {len(runs)} runs, listed below, that differ in commit, machine or command. Ratios are "
        "formed only between rows of the same commit and machine, and for times and bytes also of the same command.",
    ]


def _values(found: Iterable[str]) -> list[str]:
    return [v for v in dict.fromkeys(found) if v]


def _corpora(saved: Saved) -> list[Table]:
    hops, body = saved.hops(), []
    for name in quality.datasets_of(saved.rows):
        rows = [r for r in saved.rows if r.dataset == name]
        whole_set = [r for r in rows if r.part in ("retrieval", "qa")] or rows
        counts = (max(r.n for r in whole_set), max(r.documents for r in whole_set), max(r.tokens for r in whole_set))
        known = f"{hops[name]:.1f}" if name in hops else ""
        body.append((Cell(name), *(Cell(f"{c:,}" if c else "") for c in counts), Cell(known)))
    heads = ("questions", "passages", "tokens", "hops a question")
    columns = (Column("data set", number=False), *(Column(h) for h in heads))
    return [Table("Data sets", columns, tuple(body))] if body else []


def _runs(saved: Saved) -> list[Table]:
    runs = saved.origins()
    if len(runs) < 2:
        return []
    body = []
    for index, (of, rows) in enumerate(runs.items(), start=1):
        days = [r.date[:10] for r in rows if r.date]
        parts = joined(dict.fromkeys(r.part for r in rows))
        seeds = joined(str(s) for s in distinct(rows, lambda r: r.seed))
        cells = (
            str(index),
            days[0] if days else "",
            of.commit,
            of.hardware,
            of.command,
            seeds,
            parts,
            f"{len(rows):,}",
        )
        body.append(tuple(map(Cell, cells)))
    heads = ("run", "date", "commit", "machine", "command", "seed", "parts", "rows")
    return [Table("Runs", tuple(Column(h, number=h == "rows") for h in heads), tuple(body))]


def _raw(saved: Saved) -> list[tuple[str, str]]:
    versions: dict[str, list[str]] = {}
    for row in saved.rows:
        for name, version in row.versions.items():
            known = versions.setdefault(name, [])
            if version not in known:
                known.append(version)
    listed = "\n".join(f"{name} {', '.join(map(str, found))}" for name, found in sorted(versions.items()))
    config = json.dumps(saved.config, indent=2, ensure_ascii=False, sort_keys=True) if saved.config else ""
    return [(title, content) for title, content in (("Versions", listed), ("Configuration", config)) if content]


# What is left


def _skipped(saved: Saved) -> list[Table]:
    body = [tuple(map(Cell, (s.part, s.dataset, s.system or "all systems", s.reason))) for s in saved.skipped]
    columns = tuple(Column(h, number=False) for h in ("part", "data set", "system", "reason"))
    return [Table("What did not run, and why", columns, tuple(body))] if body else []


def _others(saved: Saved) -> list[Table]:
    """Every measurement that no chapter holds, one a line."""
    body = []
    for row in saved.rows:
        if _has_a_place(row):
            continue
        said = ", ".join(f"{name} {value}" for name, value in row.settings.items())
        names = (row.part, row.dataset, row.system, said, row.metric)
        value = Cell(number(row.value, row.metric), quality.interval(row))
        body.append((*map(Cell, names), value, Cell(f"{row.n:,}")))
    heads = ("part", "data set", "system", "settings", "metric", "value", "n")
    columns = tuple(Column(h, number=h in ("value", "n")) for h in heads)
    return [Table("Measurements that no table above holds", columns, tuple(body), folded=True)] if body else []


def _has_a_place(row: ResultRow) -> bool:
    if row.metric in growth.COSTS:
        return True
    allowed = {"retrieval": {"versus"}, "qa": {"versus", "passages"}}
    if row.part in allowed:
        return set(row.settings) <= allowed[row.part]
    return {
        "scale": growth.memory_tokens(row) is not None or row.metric == growth.LOSS,
        "needle": growth.length(row) is not None and growth.depth(row) is not None,
        "latency": row.metric in (growth.P50, growth.P95) and growth.stage(row) is not None,
    }.get(row.part, False)


def _notes(saved: Saved) -> list[str]:
    return [
        *saved.notes,
        "Every number here can be made again from results.jsonl; rankings and answers to single questions lie in runs/ "
        "and questions/.",
    ]


# Markdown


def _markdown(lead: Sequence[str], chapters: Sequence[Section], raw: Sequence[tuple[str, str]]) -> str:
    blocks = [f"# {escaped(TITLE)}", *(escaped(clean(p, 4000)) for p in lead)]
    for section in chapters:
        blocks += [f"## {escaped(section.title)}", *(escaped(clean(p, 4000)) for p in section.text)]
        for figure in section.figures:
            blocks += [f"![{escaped(figure.alt)}](plots/{figure.name})", escaped(figure.caption)]
        blocks += [markdown(t) for t in section.tables]
    for title, content in raw:
        lines = "\n".join("    " + clean(line, 4000) for line in content.split("\n"))
        blocks += [f"## {escaped(title)}", lines]
    return "\n\n".join(blocks) + "\n"
