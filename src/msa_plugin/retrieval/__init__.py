"""Retrieval: from a question to documents, by routing keys, words and names, in one round or several."""
