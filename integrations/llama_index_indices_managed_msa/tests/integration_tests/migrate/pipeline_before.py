from llama_index.core import Document, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter

documents = [Document(text="Anna Veld built the Kestrel Mill in 1821.", id_="mill")]
embed_model = MockEmbedding(embed_dim=384)
pipeline = IngestionPipeline(transformations=[SentenceSplitter(), embed_model])
nodes = pipeline.run(documents=documents)
index = VectorStoreIndex(nodes, embed_model=embed_model)
# unchanged from here on
found = index.as_retriever(similarity_top_k=1).retrieve("Who built the mill?")
