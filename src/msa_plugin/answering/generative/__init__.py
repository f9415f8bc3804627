"""Memory Interleave as the reference's models speak it: document numbers, written by the model (golden spec 6)."""
