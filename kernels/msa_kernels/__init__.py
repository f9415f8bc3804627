"""Tensor kernels, each behind one function; plain torch is the reference and the CPU path."""
