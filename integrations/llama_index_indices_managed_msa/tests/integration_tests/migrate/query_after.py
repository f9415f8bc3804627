from llama_index.core import Document

from llama_index.indices.managed.msa import MSAIndex

documents = [
    Document(text="Anna Veld built the Kestrel Mill in 1821.", id_="mill", metadata={"year": 1821}),
    Document(text="The lighthouse was lit for the first time in 1811.", id_="lighthouse", metadata={"year": 1811}),
]
index = MSAIndex.from_documents(documents, path="bank/")
# unchanged from here on
engine = index.as_query_engine(similarity_top_k=2)
answer = engine.query("When was the Kestrel Mill built?")
sources = [(node.node_id, node.score, node.metadata["year"]) for node in answer.source_nodes]
