from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index

from langchain_msa import MSAVectorStore

store = MSAVectorStore.from_documents([], path="bank", namespace="handbook")
records = InMemoryRecordManager(namespace="bank/handbook")  # keep yours in a database
records.create_schema()


def load(*texts: str) -> list[Document]:
    return [Document(text, metadata={"source": "handbook"}) for text in texts]


def bring_in_step(documents: list[Document]) -> dict[str, int]:
    return dict(index(documents, records, store, cleanup="full", source_id_key="source", key_encoder="blake2b"))


first = bring_in_step(load("The office opens at nine.", "The canteen opens at noon."))
second = bring_in_step(load("The office opens at eight.", "The canteen opens at noon."))
