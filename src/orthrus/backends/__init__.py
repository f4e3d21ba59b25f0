"""How fast: kernels behind one interface, their invariance probes, and the place that selects them."""
