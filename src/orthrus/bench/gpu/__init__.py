"""The benchmarks of a GPU, in parts ordered by value. Each part runs in its own process and writes one JSON file.

`parts` lists them, `run` runs them within a time limit, `summary` makes a table of their results, and `transfer` brings
the file of the demo model where large files cannot be copied. The other modules measure: each has a generator that
yields its result whenever it has more of it, so that a part that is killed leaves what it has measured.
"""
