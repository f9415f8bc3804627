from llama_index.core import Document

from llama_index.indices.managed.msa import MSAIndex

documents = [Document(text="Anna Veld built the Kestrel Mill in 1821.", id_="mill")]
index = MSAIndex.from_documents(documents, path="bank/")
index.persist("storage/")  # where the bank is; what is in it has been on disk since it was inserted
index.close()
again = MSAIndex.from_persist_dir("storage/")
# unchanged from here on
documents = [
    Document(text="Anna Veld built the Kestrel Mill in 1822.", id_="mill"),
    Document(text="The lighthouse was lit for the first time in 1811.", id_="lighthouse"),
]
refreshed = again.refresh_ref_docs(documents)
again.delete_ref_doc("lighthouse", delete_from_docstore=True)
