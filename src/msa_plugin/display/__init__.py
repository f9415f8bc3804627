"""How results show themselves in notebooks: HTML without scripts or network, on light and on dark pages."""
