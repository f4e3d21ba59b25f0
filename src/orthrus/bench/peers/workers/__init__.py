"""Peers that run in their own process and virtual environment: one module each, which imports nothing of orthrus.

A module has `REQUIREMENTS` (pip installs them into its environment; if empty, the current environment is used),
`VARIANTS` (name -> options), `version()` and `load(weights, options, threads, device)`, which returns a function from
(tokens, count, stops) to greedy tokens. `weights` has the paths of the backbone: `directory` (transformers layout), or
`gguf`, `gguf_q8_0` and `draft`, a draft model. `options` are those of the variant, and `context`, the most tokens of a
sequence. A module with `TEXT` has text in place of tokens: its function takes (text, count), and returns `text`, its
`count` of tokens and whether the model `ended` it. The function may have `before`, which is called before each timed
call, and `close`.
"""
