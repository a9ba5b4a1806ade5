"""Kernels of our own, for what libraries are slow at: products with the few rows of an action chunk."""
