"""`msa bench report`: report.md, report.html and plots/*.png of a run folder, from its files alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from msa_plugin.bench import plots
from msa_plugin.bench.command import Command, Voice, option
from msa_plugin.bench.page import page
from msa_plugin.bench.recompute import recompute
from msa_plugin.bench.report_parts import PARTS, tables
from msa_plugin.bench.report_rows import Saved, datasets, reason
from msa_plugin.bench.report_tables import Figure, Section, Table, joined
from msa_plugin.bench.result import ResultRow
from msa_plugin.data.jsonl import write_atomic
from msa_plugin.errors import ConfigError, MissingExtraError

TITLE = "MSA and retrieval-augmented generation, head to head"
_LAST = (
    "Every number here can be made again from results.jsonl; rankings and answers to single questions lie in runs/ "
    "and questions/."
)


class Report(Command):
    """Nothing else is read.

    Example: msa bench report results --recompute
    """

    out: Path = option(..., "The folder of a run.", argument=True)
    recompute: bool = option(False, "First rebuild the rows from the question files.")

    def run(self, out: Voice) -> None:
        """Write it."""
        if not (self.out / "results.jsonl").is_file() and not (self.out / "questions").is_dir():
            raise ConfigError(f"{self.out} holds no results; run `msa bench retrieval|qa ... --out {self.out}` first")
        rebuilt = recompute(self.out) if self.recompute else None
        if rebuilt is not None:
            out.note(f"{rebuilt} rows rebuilt from what happened to each question")
        path = write_report(self.out)
        out.say(f"report: {path}")
        out.result({"report": str(path), "recomputed": rebuilt})


def write_report(out: Path) -> Path:
    """Write report.md, report.html and plots/*.png into the run folder `out`; returns report.html.

    Raises ConfigError when the folder holds no results or they cannot be read. Without matplotlib there are no plots,
    and the report says so.
    """
    saved = Saved.read(out)
    figures, refusal = _figures(saved)
    lead = Section(TITLE, _lead(saved))
    chapters = _chapters(saved, figures, refusal)
    (out / "plots").mkdir(exist_ok=True)
    for figure in (f for chapter in chapters for f in chapter.figures):
        (out / "plots" / figure.name).write_bytes(figure.png)
    write_atomic(out / "report.md", "\n\n".join([lead.markdown(level=1), *(c.markdown() for c in chapters)]) + "\n")
    write_atomic(out / "report.html", page(lead, chapters))
    return out / "report.html"


def table(rows: Iterable[ResultRow]) -> str:
    """The report's tables of these rows as plain text for a terminal; folded ones are left out."""
    saved = Saved.of(rows)
    found = [t for part in PARTS for t in tables(saved, part) if not t.folded]
    return "\n\n".join(t.text() for t in [*found, *_skipped(saved)]) or "There are no results."


def _figures(saved: Saved) -> tuple[dict[str, list[Figure]], str]:
    try:
        return plots.figures(saved), ""
    except MissingExtraError as error:
        return {}, f"No plots: {error}"


def _chapters(saved: Saved, figures: dict[str, list[Figure]], refusal: str) -> list[Section]:
    """Those that have something to show."""
    parts = [
        Section(part.title, (part.about,), figures.get(name, ()), tables(saved, name)) for name, part in PARTS.items()
    ]
    others = [t for name in dict.fromkeys(r.part for r in saved.rows) if name not in PARTS for t in tables(saved, name)]
    config = json.dumps(saved.config, indent=2, ensure_ascii=False, sort_keys=True) if saved.config else ""
    return [
        Section("What was measured", tables=[*_corpora(saved), *_runs(saved)]),
        *(chapter for chapter in parts if chapter.tables),
        *(
            chapter
            for chapter in (
                Section("Skipped", tables=_skipped(saved)),
                Section("Other measurements", tables=others),
                Section("Notes", [*saved.notes, _LAST, *([refusal] if refusal else [])]),
                Section("Versions", code=_versions(saved)),
                Section("Configuration", code=config),
            )
            if chapter.tables or chapter.text or chapter.code
        ),
    ]


def _lead(saved: Saved) -> list[str]:
    """What a reader must know before the first number."""
    rows, runs = saved.rows, saved.origins()
    if not rows:
        return ["This folder holds no finished measurements."]
    days = sorted({r.date[:10] for r in rows if r.date}) or ["an unknown date"]
    commits = joined(dict.fromkeys(r.commit for r in rows if r.commit))
    machines = joined(dict.fromkeys(r.hardware for r in rows if r.hardware))
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    names = datasets(rows)
    one = (
        f"Measured on {when} at commit {commits or 'unknown'}, on {machines or 'an unknown machine'}, "
        f"with seed {joined(sorted({r.seed for r in rows}))}: "
        f"{len(names)} data set{'s' * (len(names) != 1)}, {len({r.system for r in rows})} systems, "
        f"{len(rows):,} measurements."
    )
    if len(runs) == 1:
        return [one, f"Command: {rows[0].command or 'unknown'}"]
    return [
        one,
        f"These rows come from {len(runs)} runs, listed below, that differ in commit, machine or command. Ratios are "
        "formed only between rows of the same commit and machine, and for times and bytes also of the same command.",
    ]


def _corpora(saved: Saved) -> list[Table]:
    hops, body = saved.hops(), []
    for name in datasets(saved.rows):
        rows = [r for r in saved.rows if r.dataset == name]
        rows = [r for r in rows if r.part in ("retrieval", "qa")] or rows
        counts = (max(r.n for r in rows), max(r.documents for r in rows), max(r.tokens for r in rows))
        body.append((name, *(f"{c:,}" if c else "" for c in counts), f"{hops[name]:.1f}" if name in hops else ""))
    heads = ("data set", "questions", "passages", "tokens", "hops a question")
    return [Table.of_texts("Data sets", heads, body, words=1)] if body else []


def _runs(saved: Saved) -> list[Table]:
    runs = saved.origins()
    body = []
    for number, (origin, rows) in enumerate(runs.items(), start=1):
        seeds, parts = joined(sorted({r.seed for r in rows})), joined(dict.fromkeys(r.part for r in rows))
        days = [r.date[:10] for r in rows if r.date] or [""]
        body.append((f"{number}", days[0], *origin, seeds, parts, f"{len(rows):,}"))
    heads = ("run", "date", "commit", "machine", "command", "seed", "parts", "rows")
    return [Table.of_texts("Runs", heads, body, words=7)] if len(runs) > 1 else []


def _skipped(saved: Saved) -> list[Table]:
    body = [(s.part, s.dataset, s.system or "all systems", reason(s)) for s in saved.skipped]
    heads = ("part", "data set", "system", "reason")
    return [Table.of_texts("What did not run, and why", heads, body, words=4)] if body else []


def _versions(saved: Saved) -> str:
    found: dict[str, dict[str, None]] = {}
    for row in saved.rows:
        for name, version in row.versions.items():
            found.setdefault(name, {})[str(version)] = None
    return "\n".join(f"{name} {', '.join(versions)}" for name, versions in sorted(found.items()))
