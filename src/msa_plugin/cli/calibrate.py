"""What `msa calibrate` does."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.cli.output import Output
from msa_plugin.data import calibration_questions
from msa_plugin.encoding.calibration import Calibration, CalibrationConfig
from msa_plugin.engine.adapters import calibrated_path
from msa_plugin.errors import ConfigError
from msa_plugin.ingest import read_paths
from msa_plugin.progress import terminal_progress
from msa_plugin.prompts import document_text


def run(
    out: Output,
    paths: Sequence[str],
    model: str | None,
    questions: Path | None,
    to: Path | None,
    layers: str | None,
    dims: int,
    pooling: int,
) -> None:
    """Calibrate and save. Raises ConfigError, IngestError and the Backbone errors."""
    config = CalibrationConfig(layers=_layers(layers), dims=dims, pooling=pooling)
    out.note(f"loading {model or 'the default backbone'} ...")
    backbone = Backbone.load(model)
    passages = (document_text(d.title, d.text) for d in read_paths(paths))
    with terminal_progress("calibrating", None, sys.stderr) as progress:
        adapter = Calibration(backbone, config).run(passages, _questions(questions), on_progress=progress)
    folder = to or calibrated_path(backbone)
    adapter.save(folder)
    routing, seen = adapter.config.routing, adapter.config.provenance
    out.say(f"calibrated {backbone.name} on {seen['passages']} passages and {seen['questions']} questions:")
    out.say(
        f"  layers {', '.join(map(str, routing.layers))}; {routing.key_groups['shared']} numbers per {pooling} tokens"
    )
    out.say(f"  saved to {folder}" + ("" if to else ", where open() finds it by itself"))
    out.result({"adapter": str(folder), "config": adapter.config.model_dump(mode="json")})


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--layers must be numbers separated by commas, not {text!r}") from error


def _questions(path: Path | None) -> Iterator[str]:
    if path is None:
        return iter(calibration_questions())
    try:
        return iter([line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()])
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read questions from {path}: {error}") from error
