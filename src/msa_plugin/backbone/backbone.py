"""A loaded language model as the engine sees it: tokens in, captured states or logits out.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from msa_plugin.backbone import loading
from msa_plugin.backbone.attention import KEYWORD, DepthReached, ForwardState, installed
from msa_plugin.backbone.cache import cache_dir
from msa_plugin.backbone.cpu import avoid_faulty_amx, fast_bfloat16
from msa_plugin.backbone.families import BackboneSpec, describe
from msa_plugin.backbone.forks import survive_forks
from msa_plugin.backbone.identity import tokenizer_hash, weights_hash
from msa_plugin.backbone.placement import BALANCED, pick_device
from msa_plugin.backbone.turns import Turns
from msa_plugin.errors import ConfigError, UnsupportedBackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from msa_plugin.backbone.adapter import Adapter


class Backbone:
    """A stock `transformers` decoder, its tokenizer, and the one way to run it with memory attention.

    Forwards of one Backbone are serialised by a lock, because the surgery is visible to every user of the model.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str = "backbone"
    ) -> None:
        """Wrap a loaded model. Raises UnsupportedBackboneError for an unknown family, or damaged end tokens."""
        survive_forks()
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.spec: BackboneSpec = describe(model.config)
        self._model_ends()
        self.own_adapter: Adapter | None = None
        self.turns = Turns()  # of those who answer with it
        self._lock = threading.RLock()
        self._reserved: frozenset[int] | None = None
        self._spellings: dict[int, tuple[int, ...]] = {}

    @classmethod
    def load(
        cls, name: str | None = None, *, device: str = "auto", dtype: str = "auto", cosine: bool | None = None
    ) -> Backbone:
        """Load by path, hub id, or None for the default.

        `auto` is CUDA if present, and bfloat16 there; on a CPU it is bfloat16 with AMX and float32 without. A device
        "balanced" spreads the layers over all GPUs. A checkpoint in the reference's format brings its adapter along,
        as `own_adapter`; for those `cosine` sets whether routing scores are cosines (None: as the reference does).
        Raises the errors of `loading.load`, and CheckpointError.
        """
        place = pick_device("auto" if device == BALANCED else device)
        if place.type == "cpu":
            avoid_faulty_amx(cache_dir())
        slow = dtype == "auto" and place.type == "cpu" and not fast_bfloat16()
        kind = torch.float32 if slow else torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
        folder = loading.reference_folder(name)
        if folder is not None:
            from msa_plugin.backbone.checkpoint import load_reference  # it needs this class

            return load_reference(folder, cosine=cosine, device=device, dtype=kind, tokenizer=True)[0]
        return cls(*loading.load(name, place, kind, spread=device == BALANCED))

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    def run(
        self,
        state: ForwardState,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        *,
        logits: Literal["none", "last", "all"] = "last",
    ) -> Tensor | None:
        """One forward of `ids` [B, T] at `positions` [B, T]; `mask` bool [B, T] marks real tokens.

        Returns logits [B, 1, V], [B, T, V], or None when not asked for or when `state` ended the forward early.
        """
        with torch.inference_mode():
            return self.forward(state, ids, mask, positions, logits=logits)

    def forward(
        self,
        state: ForwardState,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        *,
        logits: Literal["none", "last", "all"] | Tensor = "last",
    ) -> Tensor | None:
        """`run` with the gradients that the caller's context and the weights ask for.

        `logits` may also name the columns [K] of which logits [B, K, V] are wanted.
        """
        state.feed(mask)
        arguments = {"input_ids": ids, "position_ids": positions, "use_cache": False, KEYWORD: state}
        with self._lock, installed(self.model, state):
            try:
                if isinstance(logits, str) and logits == "none":
                    self.model.model(**arguments)
                    return None
                kept = {"last": 1, "all": 0}[logits] if isinstance(logits, str) else logits
                output = self.model(**arguments, logits_to_keep=kept)
            except DepthReached:
                return None
        result: Tensor = output.logits
        return result

    def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text. Special-token strings inside it are ordinary characters, never control tokens."""
        return self.tokenize_batch([text])[0]

    def tokenize_batch(self, texts: list[str]) -> list[list[int]]:
        """`tokenize` of many texts at once."""
        tokenizer = self._need_tokenizer()
        # Rust tokenizers are not re-entrant with respect to this switch, hence the lock.
        with self._lock:
            out = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        rows: list[list[int]] = out["input_ids"]
        control = self._control_ids(tokenizer)
        return [[p for t in row for p in (self._spelled(t) if t in control else (t,))] for row in rows]

    def tokenize_places(self, texts: list[str]) -> list[list[int]]:
        """For each token that `tokenize_batch` gives, the character of its text that it starts with, ascending.

        A tokenizer that cannot say (one that is not Rust's) has its tokens spread evenly over the text.
        """
        tokenizer = self._need_tokenizer()
        if not tokenizer.is_fast:
            rows = self.tokenize_batch(texts)
            return [
                [n * len(text) // max(len(ids), 1) for n in range(len(ids))]
                for text, ids in zip(texts, rows, strict=True)
            ]
        with self._lock:
            out = tokenizer(
                texts,
                add_special_tokens=False,
                split_special_tokens=True,
                return_offsets_mapping=True,
                return_attention_mask=False,
                verbose=False,
            )
        control = self._control_ids(tokenizer)
        return [
            [
                start
                for token, (start, _) in zip(ids, offsets, strict=True)
                for _ in (self._spelled(token) if token in control else (token,))
            ]
            for ids, offsets in zip(out["input_ids"], out["offset_mapping"], strict=True)
        ]

    def tokenize_frame(self, text: str) -> list[int]:
        """Token ids of our own template text, in which special tokens are control tokens. Never for user text."""
        tokenizer = self._need_tokenizer()
        with self._lock:
            ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
        return ids

    def tokenize_pieces(self, pieces: Iterable[tuple[str, bool]]) -> list[int]:
        """Token ids of text in pieces, each with whether it is our own frame or somebody's content."""
        return [
            t for text, is_frame in pieces for t in (self.tokenize_frame(text) if is_frame else self.tokenize(text))
        ]

    def _control_ids(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """Tokens that no text may become: special ones, those that end a turn, and those of the chat template.

        A template's own markers need not be special: Qwen3 adds `<think>` and `<tool_call>` as ordinary tokens.
        """
        if self._reserved is None:
            added = tokenizer.added_tokens_decoder
            template = str(tokenizer.chat_template or "")
            marks = {i for i, token in added.items() if token.special or (token.content in template and token.content)}
            core = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
            # What an unknown character becomes is no control token, unless it is one besides.
            unknown = {tokenizer.unk_token_id} if getattr(core, "unk_token", None) == tokenizer.unk_token else set()
            ids = (marks | set(tokenizer.all_special_ids)) - unknown
            self._reserved = frozenset(i for i in ids | self.end_ids if i is not None)
        return self._reserved

    def _spelled(self, token: int) -> tuple[int, ...]:
        """What text that reads like a control token is tokenised as: its first character, then the rest."""
        if token not in self._spellings:
            tokenizer = self._need_tokenizer()
            mark = tokenizer.added_tokens_decoder.get(token)
            parts = [mark.content[:1], mark.content[1:]] if mark is not None else []
            with self._lock:
                rows = [tokenizer(p, add_special_tokens=False, split_special_tokens=True)["input_ids"] for p in parts]
            control = self._control_ids(tokenizer)
            self._spellings[token] = tuple(t for row in rows for t in row if t not in control)
        return self._spellings[token]

    def detokenize(self, ids: list[int]) -> str:
        """Text of generated ids, without special tokens."""
        text: str = self._need_tokenizer().decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def special(self, token: str) -> int:
        """Id of a special token. Raises ConfigError when the tokenizer has none of that name."""
        tokenizer = self._need_tokenizer()
        index = tokenizer.convert_tokens_to_ids(token) if token.isprintable() else None
        if index is None or index == tokenizer.unk_token_id:
            raise ConfigError(f"the tokenizer of {self.name} has no special token {token!r}")
        return int(index)

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end a turn."""
        ids = self._model_ends()
        if self.tokenizer is not None:
            ids.append(self.tokenizer.eos_token_id)
        return frozenset(i for i in ids if i is not None)

    def _model_ends(self) -> list[int | None]:
        found = getattr(self.model.generation_config, "eos_token_id", None)
        ends = list(found) if isinstance(found, list) else [found]
        if not all(isinstance(i, int | None) for i in ends):
            raise UnsupportedBackboneError(
                f"eos_token_id of {self.name} is {found!r:.80}; "
                "it must be a number or a list of numbers, in generation_config.json or config.json"
            )
        return ends

    def _need_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise ConfigError(f"backbone {self.name} was loaded without a tokenizer; text cannot be encoded")
        return self.tokenizer

    def weights_hash(self) -> str:
        """See `identity.weights_hash`."""
        return weights_hash(self.model)

    def tokenizer_hash(self) -> str:
        """See `identity.tokenizer_hash`."""
        return tokenizer_hash(self.tokenizer)
