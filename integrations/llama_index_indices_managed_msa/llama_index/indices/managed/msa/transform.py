"""Documents to nodes, one to one: a memory encodes documents whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    Document,
    MetadataMode,
    NodeRelationship,
    TextNode,
    TransformComponent,
)


class WholeDocument(TransformComponent):
    """Makes one `TextNode` of every `Document` and leaves other nodes as they are.

    It stands where a splitter does. The node's id is "<document id>::0", the same on every run, and its SOURCE is the
    document, which is how `delete_ref_doc` and `refresh_ref_docs` find it.
    """

    @classmethod
    def class_name(cls) -> str:
        """Name for serialisation."""
        return "WholeDocument"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """The nodes, in order."""
        return [_whole(node) if isinstance(node, Document) else node for node in nodes]


def _whole(document: Document) -> TextNode:
    return TextNode(
        id_=f"{document.id_}::0",
        text=document.get_content(metadata_mode=MetadataMode.NONE),
        metadata=dict(document.metadata),
        excluded_embed_metadata_keys=document.excluded_embed_metadata_keys,
        excluded_llm_metadata_keys=document.excluded_llm_metadata_keys,
        metadata_template=document.metadata_template,
        metadata_separator=document.metadata_separator,
        text_template=document.text_template,
        relationships={**document.relationships, NodeRelationship.SOURCE: document.as_related_node_info()},
    )


def sourced(nodes: Sequence[BaseNode], hashes: Mapping[str, str] | None = None) -> list[BaseNode]:
    """`nodes` without bare documents, each with the hash that its source had before it was transformed.

    A transformation may have changed a document in place; `refresh_ref_docs` compares with the document as it came.
    """
    whole = WholeDocument()(nodes)
    for node in whole:
        source = node.source_node
        if source is not None and hashes and source.node_id in hashes:
            source.hash = hashes[source.node_id]
    return whole
