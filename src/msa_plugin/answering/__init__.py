"""Answering: what was found is read, as text or as stored K, V, and an answer is written."""
