"""Decoding: noise, sampling, the oracle, and the cycles that must equal it token for token."""
