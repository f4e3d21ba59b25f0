"""Peers that run in their own process and virtual environment: one module each, which imports nothing of orthrus.

A module has `REQUIREMENTS` (pip installs them into its environment; if empty, the current environment is used),
`VARIANTS` (name -> options) and `load(weights, options, threads, device)`, which returns a function from (tokens,
count, stops) to greedy tokens. `weights` has the paths of the backbone: `directory` (transformers layout), `gguf` and
`gguf_q8_0`.
"""
