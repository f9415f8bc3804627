"""Training: the same seams as inference, with gradients."""
