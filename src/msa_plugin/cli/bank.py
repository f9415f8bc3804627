"""`msa bank ...`: look after a bank on disk. None of these needs the backbone; those that read latents need torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from msa_plugin.backbone.cache import cache_dir
from msa_plugin.cli.options import Bank, Json, Namespace, open_bank, open_catalog
from msa_plugin.cli.output import Output, size
from msa_plugin.errors import BankNotFoundError, ConfigError

app = typer.Typer(help="Look after a memory bank on disk.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def info(bank: Bank = Path("bank"), namespace: Namespace = "default", as_json: Json = False) -> None:
    """What a bank holds and what it was built with.

    Example: msa bank info --bank bank
    """
    out = Output(as_json)
    with open_catalog(bank, checked=True) as catalog:
        at, made_with = catalog.now(), catalog.fingerprint()
        stats = catalog.stats(at, catalog.documents.totals(at, namespace))
    name = model_name(made_with.backbone)
    out.say(f"{bank}: namespace {namespace!r} (there are: {', '.join(map(repr, stats.namespaces)) or 'none'})")
    out.say(
        f"  documents {stats.documents:,}, tokens {stats.tokens:,}, chunks {stats.chunks:,}, deleted {stats.deleted:,}"
    )
    out.say(
        f"  on disk {size(stats.bytes_total)}: routing keys {size(stats.bytes_keys)}, "
        f"content {size(stats.bytes_content)}, words and names {size(stats.bytes_words)}, "
        f"catalog with all texts {size(stats.bytes_catalog)}; {stats.segments:,} segments"
    )
    out.say(f"  snapshots: {', '.join(stats.snapshots) or 'none'}")
    out.say(f"  made with {name or 'a model that no adapter here is for'}")
    for field, value in asdict(made_with).items():
        out.say(f"    {field}: {value}")
    out.result({**asdict(stats), "bytes_total": stats.bytes_total, "model": name, "fingerprint": asdict(made_with)})


@app.command()
def verify(bank: Bank = Path("bank"), as_json: Json = False) -> None:
    """Read every file and compare it with its checksum. Exits with 1 when something is wrong.

    Example: msa bank verify --bank bank
    """
    from msa_plugin.bank.verify import verify_bank

    out = _reading(bank, as_json)
    report = verify_bank(bank, deep=True)
    out.say(f"{report.files} files, {size(report.bytes)}: " + ("all is well" if report.ok else "DAMAGED"))
    for problem in report.problems:
        out.say(f"  {problem}")
    if report.documents:
        out.say(f"  documents affected: {', '.join(report.documents[:20])}")
    out.result({**asdict(report), "ok": report.ok})
    if not report.ok:
        raise typer.Exit(1)


def _reading(bank: Path, as_json: bool) -> Output:
    """The command's voice, which has said what begins. Raises BankNotFoundError where no folder is."""
    if not bank.is_dir():
        raise BankNotFoundError(f"there is no bank in {bank}; --bank names its folder")
    out = Output(as_json)
    out.note(f"reading every file of {bank} ...")
    return out


@app.command()
def repair(bank: Bank = Path("bank"), as_json: Json = False) -> None:
    """Keep what is sound of a damaged bank, save the texts of the rest, and list what is lost.

    Exits with 1 when something is. Example: msa bank repair --bank bank
    """
    from msa_plugin.bank.repair import repair_bank

    out = _reading(bank, as_json)
    report = repair_bank(bank)
    out.say("all is well, nothing to repair" if not report.problems else "repaired; the bank verifies again")
    for problem in report.problems:
        out.say(f"  was: {problem}")
    for file in report.files:
        out.say(f"  texts to encode again: msa add {file} --bank {bank}")
    if not report.complete:
        out.say(f"  lost: {', '.join(report.lost[:20]) or 'no document by name'}; {report.unreadable} unreadable rows")
    out.result(asdict(report))
    if not report.complete:
        raise typer.Exit(1)


@app.command()
def migrate(
    bank: Bank = Path("bank"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be written.")] = False,
    as_json: Json = False,
) -> None:
    """Bring a bank of an older format into the present one.

    Example: msa bank migrate --bank bank --dry-run
    """
    from msa_plugin.bank.migrate import migrate_bank

    out = Output(as_json)
    report = migrate_bank(bank, dry_run=dry_run)
    if report.found == report.now and not report.counted:
        out.say(f"the bank has format version {report.now} already")
    else:
        done = "would be" if dry_run else "were"
        out.say(f"from format {report.found} to {report.now}: {report.segments} segments {done} written anew")
        out.say(f"  {size(report.bytes)} of latents; words and names of {report.counted} other segments")
    out.result({**report._asdict(), "dry_run": dry_run})


@app.command()
def compact(bank: Bank = Path("bank"), as_json: Json = False) -> None:
    """Free the space of deleted documents and merge small segments.

    Example: msa bank compact --bank bank
    """
    out = Output(as_json)
    out.note(f"compacting {bank} ...")
    with open_bank(bank, read_only=False) as opened:
        before = opened.stats("default").bytes_total
        opened.compact()
        after = opened.stats("default").bytes_total
    held = _held(bank)
    out.say(f"{size(before)} before, {size(after)} after")
    for name, documents in held.items():
        out.say(
            f"  snapshot {name} still holds {documents:,} documents that were deleted or replaced since; to free them: "
            f"msa bank snapshot {name} --drop --bank {bank}, then compact again"
        )
    out.result({"bytes_before": before, "bytes_after": after, "held": held})


def _held(bank: Path) -> dict[str, int]:
    """Documents that are kept for a snapshot alone, by its name."""
    with open_catalog(bank) as catalog:
        counts = {s.name: catalog.documents.held(s.at) for s in catalog.snapshots()}
    return {name: count for name, count in counts.items() if count}


@app.command()
def snapshot(
    name: Annotated[
        str | None, typer.Argument(help="Name of a new snapshot; without one, the snapshots are listed.")
    ] = None,
    bank: Bank = Path("bank"),
    drop: Annotated[bool, typer.Option("--drop", help="Forget the snapshot instead of making it.")] = False,
    as_json: Json = False,
) -> None:
    """Name the present state, to be opened later; or list or drop snapshots.

    Example: msa bank snapshot before-import --bank bank
    """
    out = Output(as_json)
    if drop and name is None:
        raise ConfigError("--drop needs the name of a snapshot; msa bank snapshot lists them")
    if name is not None:
        with open_bank(bank, read_only=False) as opened:
            (opened.drop_snapshot if drop else opened.snapshot)(name)
    with open_catalog(bank) as catalog:
        names = [s.name for s in catalog.snapshots()]
    out.say("snapshots: " + (", ".join(names) or "none"))
    out.result({"snapshots": names})


def model_name(weights: str) -> str:
    """The name of the model with these weights, by the adapters that ship or were calibrated here; "" if unknown."""
    shipped = Path(str(resources.files("msa_plugin"))) / "adapters"
    files = (*sorted(shipped.glob("*/adapter.json")), cache_dir() / "adapters" / weights / "adapter.json")
    return next((name for file in files if (name := _named(file, weights))), "")


def _named(file: Path, weights: str) -> str:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        name = str(config["name"]) if config["backbone"] == weights else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return name.removesuffix(" routing").removesuffix(" calibrated")
