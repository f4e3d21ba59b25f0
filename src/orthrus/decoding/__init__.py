"""Decoding: noise, sampling, the oracle (plain AR decoding), and the cycles, whose tokens equal those of the oracle."""
