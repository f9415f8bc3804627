"""Sentence embedders of other makes: baselines of the benchmark, and teachers of the router."""
