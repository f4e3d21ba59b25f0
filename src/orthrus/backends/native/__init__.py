"""Kernels in C for CPUs, compiled when the package is built or on the machine that runs them."""
