"""Encoding: documents into routing keys and content, once, and into the bank."""
