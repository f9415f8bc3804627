from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from langchain_msa import ChatMSA, MSAVectorStore

documents = [
    Document("Anna Veld built the Kestrel Mill in 1821.", metadata={"source": "mill.md", "year": 1821}),
    Document("The blue-throated tinker eats mostly beetles.", metadata={"source": "birds.md", "year": 1990}),
    Document("Harbour trains ran to Port Arno until 1934.", metadata={"source": "trains.md", "year": 1934}),
]
store = MSAVectorStore.from_documents(documents, path="bank")
llm = ChatMSA(store.memory)  # it answers what is in its prompt

retriever = store.as_retriever(search_kwargs={"k": 2})
prompt = ChatPromptTemplate.from_template("{context}\n\nQuestion: {question}\nAnswer in one short sentence.")


def as_text(found: list[Document]) -> str:
    return "\n".join(document.page_content for document in found)


chain = {"context": retriever | as_text, "question": RunnablePassthrough()} | prompt | llm | StrOutputParser()
answer = chain.invoke("Who built the Kestrel Mill?")
