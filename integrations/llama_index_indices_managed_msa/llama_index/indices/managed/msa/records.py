"""A node as a memory document, and back.

The text is the document's text, the node's metadata is its metadata, and what else a node has (its class, its
relationships, templates) travels under two reserved metadata keys. A document that was added without LlamaIndex has
no such keys and becomes a plain `TextNode`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from llama_index.core.constants import DATA_KEY, TYPE_KEY
from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore.utils import json_to_doc

from llama_index.llms.msa.filters import SOURCE
from msa_plugin.errors import InvalidDocumentError
from msa_plugin.integrating import listed
from msa_plugin.types import Document, Hit, Passage

_Node = TypeVar("_Node", bound=BaseNode)
RECORD = "_llama_index"
_ELSEWHERE = ("id_", "text", "metadata", "embedding")


def to_document(node: BaseNode) -> Document:
    """The document that stands for `node`. Its title is the metadata's "title", if that is text.

    Raises InvalidDocumentError for metadata under a reserved key, and for ids and texts that cannot be stored.
    """
    reserved = sorted({RECORD, SOURCE} & set(node.metadata))
    if reserved:
        raise InvalidDocumentError(f"node {node.node_id!r}: the metadata keys {reserved} are reserved; rename them")
    title = node.metadata.get("title")
    metadata = {**node.metadata, RECORD: _record(node)}
    if node.ref_doc_id is not None:
        metadata[SOURCE] = node.ref_doc_id
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    return Document(node.node_id, text, title if isinstance(title, str) else "", metadata)


def several(name: str, nodes: Iterable[_Node] | BaseNode) -> list[_Node]:
    """Nodes or documents as a list. Raises InvalidDocumentError for a lone one, for text, and for what is neither."""
    given = [] if isinstance(nodes, BaseNode) else listed(name, nodes, InvalidDocumentError)
    if isinstance(nodes, BaseNode) or not all(isinstance(node, BaseNode) for node in given):
        raise InvalidDocumentError(f"{name}= takes a list of LlamaIndex nodes or documents; put a single one in [...]")
    return given


def _record(node: BaseNode) -> dict[str, Any]:
    data = node.to_dict(mode="json", exclude_defaults=True)
    kept = {key: value for key, value in data.items() if key not in _ELSEWHERE}
    return {"type": node.get_type(), "hash": node.hash, "data": kept}


def to_node(document: Document | Hit) -> BaseNode:
    """The node that `document` was made from."""
    metadata = {key: value for key, value in document.metadata.items() if key not in (RECORD, SOURCE)}
    if isinstance(document, Hit):
        metadata |= {name: value for name, value in document.validity._asdict().items() if value is not None}
    if isinstance(document, Hit) and document.passage is not None:
        return _passage_node(document, document.passage, metadata)
    record = document.metadata.get(RECORD)
    if record is None:
        if document.title:
            metadata.setdefault("title", document.title)
        return TextNode(id_=document.id, text=document.text, metadata=metadata)
    data = {**record["data"], "id_": document.id, "metadata": metadata}
    if "text_resource" not in data:
        data["text"] = document.text
    return json_to_doc({TYPE_KEY: record["type"], DATA_KEY: data})


def _passage_node(hit: Hit, passage: Passage, metadata: dict[str, Any]) -> TextNode:
    """A node of its own, whose source is the node that it is a passage of."""
    if hit.title:
        metadata.setdefault("title", hit.title)
    return TextNode(
        id_=f"{hit.id}#{passage.start}-{passage.end}",
        text=passage.text,
        metadata=metadata,
        start_char_idx=passage.start,
        end_char_idx=passage.end,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=hit.id)},
    )


def passage_of(node: BaseNode) -> tuple[str, int, int] | None:
    """Id of the document that `node` is a passage of, as retrieved from a memory, and its characters; else None."""
    start, end = getattr(node, "start_char_idx", None), getattr(node, "end_char_idx", None)
    if start is None or end is None or node.node_id != f"{node.ref_doc_id}#{start}-{end}":
        return None
    assert node.ref_doc_id is not None
    return node.ref_doc_id, start, end


def node_hash(metadata: Mapping[str, Any]) -> str | None:
    """Hash of the node that a document with this metadata stands for; None where it came without LlamaIndex."""
    record = metadata.get(RECORD)
    return None if record is None else str(record["hash"])


def source(metadata: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Id and hash of the LlamaIndex document that a node with this metadata was made from."""
    name = metadata.get(SOURCE)
    if name is None:
        return None, None
    relations = metadata[RECORD]["data"]["relationships"].values()
    hashes = (r.get("hash") for r in relations if isinstance(r, Mapping) and r.get("node_id") == name)
    return name, next((h for h in hashes if h), None)
