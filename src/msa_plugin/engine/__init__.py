"""Engine: encoding, assembly, generation and interleave over a backbone and a bank."""
