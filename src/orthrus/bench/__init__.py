"""Benchmarks: tasks with real prompts, measurements with provenance, and comparisons with plain decoding."""
