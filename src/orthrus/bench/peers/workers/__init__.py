"""Peers that run in processes and environments of their own: one file each, which imports nothing of this package.

A file has `REQUIREMENTS` (what pip installs into its environment; none: this one serves), `VARIANTS` (name -> options)
and `load(weights, options, threads)`, whose result takes (tokens, count, stops) and gives greedy tokens.
`weights` names a `directory` with the backbone in the layout of transformers, and `gguf`, its file in that form.
"""
