"""Kernels behind one interface, the probes of their invariance, and the choice of the fastest ones."""
