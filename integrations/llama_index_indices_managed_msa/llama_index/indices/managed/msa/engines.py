"""Query engines over an `MSAIndex`: the memory's own reading, or text RAG for any other language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.llms import LLM
from llama_index.core.llms.utils import LLMType, resolve_llm
from llama_index.core.query_engine import RetrieverQueryEngine

from llama_index.indices.managed.msa.synthesizer import MSASynthesizer
from llama_index.llms.msa import MSALLM
from msa_plugin.config import GenerationConfig
from msa_plugin.errors import ConfigError

if TYPE_CHECKING:
    from llama_index.indices.managed.msa.base import MSAIndex

# Whoever passes one of these wants prompts made of text, which reading by id has none of.
_TEXT = {
    "response_mode",
    "text_qa_template",
    "refine_template",
    "summary_template",
    "simple_template",
    "chat_content_qa_template",
    "chat_content_refine_template",
    "output_cls",
    "multimodal",
}


def query_engine(index: MSAIndex, llm: LLMType | None, **kwargs: Any) -> RetrieverQueryEngine:
    """See `MSAIndex.as_query_engine`."""
    model = language_model(index, llm)
    options = {name: kwargs.pop(name) for name in GenerationConfig.model_fields if name in kwargs}
    by_id = isinstance(model, MSALLM) and model.memory is index.memory and not _TEXT & set(kwargs)
    if kwargs.get("response_synthesizer") is None and by_id:
        assert isinstance(model, MSALLM)
        kwargs["response_synthesizer"] = MSASynthesizer(
            index.memory,
            streaming=kwargs.pop("streaming", False),
            callback_manager=index.callback_manager,
            **model.generation_options(options),
        )
    elif options:
        raise ConfigError(f"{sorted(options)} are settings of the memory's own reading; set them on the llm instead")
    elif isinstance(model, MSALLM) and model.mode == "memory" and kwargs.get("response_synthesizer") is None:
        raise ConfigError(
            "an MSALLM in mode 'memory' would route on a prompt full of retrieved text; use MSALLM(memory), "
            "or leave llm= out to read the retrieved nodes by id"
        )
    kwargs.setdefault("callback_manager", index.callback_manager)
    return RetrieverQueryEngine.from_args(index.as_retriever(**kwargs), llm=model, **kwargs)


def language_model(index: MSAIndex, llm: LLMType | None) -> LLM:
    """`llm`, or the memory's own backbone; Settings.llm is never asked."""
    if llm is None:
        return MSALLM(index.memory, callback_manager=index.callback_manager)
    return llm if isinstance(llm, MSALLM) else resolve_llm(llm, callback_manager=index.callback_manager)
