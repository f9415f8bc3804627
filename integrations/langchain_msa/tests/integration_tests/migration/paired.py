from langchain_msa import ChatMSA, MSAVectorStore, create_msa_chain

store = MSAVectorStore.from_texts(
    [
        "Anna Veld built the Kestrel Mill in 1821.",
        "The blue-throated tinker eats mostly beetles.",
        "Harbour trains ran to Port Arno until 1934.",
    ],
    metadatas=[{"year": 1821}, {"year": 1990}, {"year": 1934}],
    ids=["mill", "birds", "trains"],
    path="bank",
)
llm = ChatMSA(store.memory, mode="memory")
chain = create_msa_chain(store.as_retriever(search_kwargs={"k": 2}), llm)

result = chain.invoke("Who built the Kestrel Mill?")  # {"input", "context", "answer", "sources"}
routed = llm.invoke("What does the blue-throated tinker eat?")  # routes by itself
old = store.similarity_search("railways", filter={"year": {"$lt": 1950}})
