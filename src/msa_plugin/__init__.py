"""Memory Sparse Attention as a drop-in latent memory for language models (arXiv 2603.23516)."""
