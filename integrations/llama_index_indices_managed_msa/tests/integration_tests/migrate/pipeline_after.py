from llama_index.core import Document
from llama_index.core.ingestion import IngestionPipeline

from llama_index.indices.managed.msa import MSAIndex, WholeDocument

documents = [Document(text="Anna Veld built the Kestrel Mill in 1821.", id_="mill")]
pipeline = IngestionPipeline(transformations=[WholeDocument()])
nodes = pipeline.run(documents=documents)
index = MSAIndex(nodes, path="bank/")
# unchanged from here on
found = index.as_retriever(similarity_top_k=1).retrieve("Who built the mill?")
