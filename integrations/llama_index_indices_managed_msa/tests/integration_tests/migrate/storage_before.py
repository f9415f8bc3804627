from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.embeddings import MockEmbedding

embed_model = MockEmbedding(embed_dim=384)
documents = [Document(text="Anna Veld built the Kestrel Mill in 1821.", id_="mill")]
index = VectorStoreIndex.from_documents(documents, embed_model=embed_model)
index.storage_context.persist("storage/")
again = load_index_from_storage(StorageContext.from_defaults(persist_dir="storage/"), embed_model=embed_model)
# unchanged from here on
documents = [
    Document(text="Anna Veld built the Kestrel Mill in 1822.", id_="mill"),
    Document(text="The lighthouse was lit for the first time in 1811.", id_="lighthouse"),
]
refreshed = again.refresh_ref_docs(documents)
again.delete_ref_doc("lighthouse", delete_from_docstore=True)
