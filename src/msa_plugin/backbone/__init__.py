"""Backbone: stock transformers models, their normalised description, and the seams of the surgery."""
