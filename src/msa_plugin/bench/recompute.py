"""The rows of a folder once more, from rankings and question files alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from msa_plugin.bench import growth_rows, scoring
from msa_plugin.bench.store import NOTE, SKIPPED, Results, key_of
from msa_plugin.errors import ConfigError

PARTS = {
    **dict.fromkeys(scoring.PARTS, scoring.rows_of),
    **dict.fromkeys(growth_rows.PARTS, growth_rows.rows_of),
}
_ORIGIN = ("seed", "versions", "hardware", "commit", "command", "date")


def recompute(out: Path) -> int:
    """Rebuild the rows of every part that keeps its questions; returns how many there are.

    All other rows stay (indexing and peak memory are single measurements), as do those of parts and data sets without
    question files, and rows that were there before keep what is said about where they come from.
    Raises ConfigError when the folder holds no question files.
    """
    with Results(out) as results:
        sets = list(dict.fromkeys((part, dataset) for part in PARTS for dataset, _ in results.question_sets(part)))
        if not sets:
            raise ConfigError(f"{out.name} holds no question files to recompute from")
        before = results.rows()
        old = {(key_of(row), row.metric): row for row in before}
        stamped = [row for row in before if (row.part, row.dataset) not in sets or row.metric in (SKIPPED, NOTE)]
        others, fresh = len(stamped), []
        for part, dataset in sets:
            for row in PARTS[part](results, part, dataset):
                origin = old.get((key_of(row), row.metric))
                if origin is None:
                    fresh.append(row)
                else:
                    stamped.append(replace(row, **{field: getattr(origin, field) for field in _ORIGIN}))
        results.rewrite(stamped)
        results.add(fresh)
        return len(fresh) + len(stamped) - others
